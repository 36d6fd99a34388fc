"""Rules over several fields of a spec, each with the path at which its fault is shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TypeAlias

from stagedkd.spec.cascade import LARGEST_HOP, assistants
from stagedkd.spec.cuts import cut_problems, student_cut
from stagedkd.spec.families import FAMILIES, class_names, mirror_pairs
from stagedkd.spec.fields import nearest
from stagedkd.spec.method_rules import compared, guided, phases_fit
from stagedkd.spec.pairing import matching
from stagedkd.spec.schedule import PhaseProblem, phase_epochs
from stagedkd.spec.schema import (
    FEATURES,
    RESPONSES,
    Asymmetric,
    NetworkFields,
    Simulated,
    Spec,
    Student,
    StudentFields,
    Teacher,
    TeacherFields,
    is_weight_file,
)

CUT = "add student.substages"
Fault: TypeAlias = tuple[str, tuple["str | int", ...], str]


def check_rules(spec: Spec) -> list[Fault]:
    """All faults that no single field shows: (message, path in the spec, mend)."""
    faults = [*_networks(spec), *_phases(spec), *_epochs(spec), *_labels(spec), *_refined(spec), *_views(spec)]
    return faults or [*_cascade(spec)]


def warnings(spec: Spec) -> list[Fault]:
    """What is allowed and probably not meant, for a spec without fault."""
    row: list[Teacher | Student] = [spec.teacher, *assistants(spec), spec.student]
    sizes, found = [network.trunk_params for network in row], list[Fault]()
    for hop in range(1, len(row)):
        above, below = sizes[hop - 1], sizes[hop]
        at: tuple[str | int, ...] = ("student",) if hop == len(row) - 1 else ("cascade",)
        if at == ("cascade",) and spec.cascade != "auto":
            at = ("cascade", hop - 1)
        if above and below and below > above:
            found.append((f"hop {hop} goes from {above:,} to {below:,} parameters: the network grows", at, ""))
        elif above and below and above / below > LARGEST_HOP:
            gap = f"hop {hop} is a {above / below:.1f}x gap ({above:,} to {below:,} parameters)"
            found.append((gap, at, f"{LARGEST_HOP:g}x is the usual limit; cascade: auto adds assistants"))
    return found


def _all_networks(spec: Spec) -> Iterator[tuple[tuple[str | int, ...], Teacher | Student]]:
    yield ("teacher",), spec.teacher
    for i, teacher in enumerate(spec.co_teachers):
        yield ("co_teachers", i), teacher
    if spec.cascade != "auto":
        for i, item in enumerate(spec.cascade):
            if isinstance(item, NetworkFields):
                yield ("cascade", i), item
    yield ("student",), spec.student


def _networks(spec: Spec) -> Iterator[Fault]:
    for at, network in _all_networks(spec):
        names = network.block_names
        if network.substages is not None and names is not None:
            for fault, place, hint in cut_problems(network.substages, names):
                yield fault, (*at, "substages", *place), hint
        if network.fixed_input and network.fixed_input != spec.clip.seen(network.input):
            frames, size = network.fixed_input
            hint = f"set clip: {{frames: {frames}, size: {size}}}, and an input: for networks that want less"
            yield f"{network.arch} runs at {frames}x{size}x{size} only", (*at, "arch"), hint
        for field, most in (("frames", spec.clip.frames), ("size", spec.clip.size)):
            wanted = getattr(network.input, field, None)
            if wanted and wanted > most:
                message = f"the input has {wanted} for {field}, and the shared view {most}"
                yield message, (*at, "input", field), f"raise clip.{field}; the others can have an input of their own"
        yield from _weights(at, network)
        started = network.epochs or network.weights or network.pretrained_from
        if isinstance(network, TeacherFields) and not started:
            yield "a teacher of 0 epochs needs weights", (*at, "epochs"), "add weights: or epochs:"


def _weights(at: tuple[str | int, ...], network: Teacher | Student) -> Iterator[Fault]:
    name = network.weights
    if name is not None and network.pretrained_from:
        yield "the model has weights of its own", (*at, "weights"), "leave weights out, or set pretrained: false"
    if name is None or is_weight_file(name):
        return
    known = network.weight_names
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        mend = (
            f"did you mean '{near[0]}'?" if near else f"{', '.join(known)}{' or ' if known else ''}a .safetensors path"
        )
        yield f"no weights '{name}'", (*at, "weights"), mend


def _phases(spec: Spec) -> Iterator[Fault]:
    parts = len(student_cut(spec.student))
    for name, phase in spec.distill.phases.items():
        at = ("distill", "phases", name)
        response, feature = phase.losses.comparing(RESPONSES), phase.losses.comparing(FEATURES)
        if phase.substages == "one_by_one" and response:
            loss = min(response)
            yield (
                f"'{loss}' needs logits, and a phase one by one never reaches the head",
                (*at, "losses", loss),
                ("move it to a phase over all substages"),
            )
        if phase.substages == ():
            yield f"phase '{name}' trains nothing: it names no substage", (*at, "substages"), "for example all"
        if isinstance(phase.substages, tuple):
            for i, number in enumerate(phase.substages):
                if parts and number > parts:
                    yield f"there is no substage {number}", (*at, "substages", i), f"the student has {parts}"
            if not parts:
                yield f"phase '{name}' names substages: the student must declare its own", (*at, "substages"), CUT
            if len(set(phase.substages)) != len(phase.substages):
                yield "a substage stands twice", (*at, "substages"), "name each once"
        if feature and not parts:
            yield (
                f"'{min(feature)}' compares substages: the student must declare its own",
                (*at, "losses"),
                CUT,
            )
        if phase.ramp is not None and not feature:
            yield "ramp is for losses on features, and this phase has none", (*at, "ramp"), "leave it out"
        if feature and phase.substages == "one_by_one" and (alone := phase.losses.comparing({"substages"})):
            message = f"'{min(alone)}' compares substages with each other, and one by one there is one"
            yield message, (*at, "losses", min(alone)), "move it to a phase over all substages"
    trained = [p for p in spec.distill.phases.values() if p.losses.comparing(RESPONSES)]
    if not trained:
        yield "no phase trains the head", ("distill", "phases"), "add a phase with kd or ce"


def _epochs(spec: Spec) -> Iterator[Fault]:
    for at, network in _all_networks(spec):
        if not isinstance(network, StudentFields):
            continue
        try:
            phase_epochs(spec.distill.phases, network.epochs or spec.student.epochs, len(student_cut(network)))
        except PhaseProblem as fault:
            own = network.epochs is not None
            at = ("distill", "phases", fault.phase) if fault.phase else (*(at if own else ("student",)), "epochs")
            yield str(fault), at, fault.hint


def _refined(spec: Spec) -> Iterator[Fault]:
    using = [name for name, phase in spec.distill.phases.items() if phase.losses.pseudo]
    if spec.refine is None:
        for name in using:
            at = ("distill", "phases", name, "losses", "pseudo")
            yield "'pseudo' needs refined labels", at, "add refine: {kind: noise_model}, or leave pseudo out"
        return
    if spec.labels.clean == 0:
        yield "'refine' needs clean labels: labels.clean is 0", ("refine",), "raise labels.clean"
    if spec.refine.by != "student" and not (spec.refine.epochs or spec.teacher.epochs):
        hint = "add refine.epochs, or refine.by: student"
        yield "a teacher of 0 epochs says not how long to train it out of fold", ("refine",), hint
    if spec.teacher.labels == "all" and spec.distill.teacher.labels is None:
        hint = "labels: same, or leave refine out"
        yield (
            "a teacher of the true labels cannot refine them: that reads the hidden truth",
            ("teacher", "labels"),
            hint,
        )
    if not using:
        yield "no phase uses the refined labels", ("refine",), "add the loss pseudo, or leave refine out"


def _labels(spec: Spec) -> Iterator[Fault]:
    if spec.labels.clean + spec.labels.noisy > 0:
        return
    for name, phase in spec.distill.phases.items():
        if phase.losses.ce:
            yield (
                "'ce' has no labels: clean and noisy are 0",
                ("distill", "phases", name, "losses", "ce"),
                ("raise labels.clean, or leave ce out"),
            )
    for at, teacher in _all_networks(spec):
        if not isinstance(teacher, TeacherFields) or not teacher.epochs:
            continue
        if (spec.distill.teacher.labels or teacher.labels) == "same":
            yield "the teacher has no labels: clean and noisy are 0", at, "raise labels.clean, or labels: all"
    if spec.control:
        yield "control: ce has no labels: clean and noisy are 0", ("control",), "leave it out"


def _views(spec: Spec) -> Iterator[Fault]:
    if spec.clip.decoder == "torchcodec" and spec.clip.cache != "none":
        hint = "set cache: none; a cache is filled once, in sequence, by pyav"
        yield "torchcodec is for videos that are read without a cache", ("clip", "decoder"), hint
    if isinstance(spec.data, Simulated):
        if spec.evaluate.clips > 1 or spec.evaluate.crops > 1:
            yield "a simulated clip has one view", ("evaluate",), "leave clips and crops at 1"
        mirrored = mirror_pairs(class_names(spec.data))
        if spec.augment.flip and mirrored:
            yield f"{' and '.join(mirrored[0])} are each other's mirror image", ("augment", "flip"), "leave flip at 0"
        yield from _known_classes(spec, spec.data)
    elif spec.evaluate.split == "test" and getattr(spec.data, "test_folds", 1) == 0:
        yield "there is no test split: data.test_folds is 0", ("evaluate", "split"), "use val, or set data.test_folds"


def _known_classes(spec: Spec, data: Simulated) -> Iterator[Fault]:
    family, named = FAMILIES[data.kind], class_names(data)
    for i, name in enumerate(named):
        if name not in family:
            yield f"'{data.kind}' has no class '{name}'", ("data", "classes", i), nearest(name, family)
    if isinstance(spec.labels.noise, Asymmetric):
        for one, other in spec.labels.noise.confusions.items():
            for name in (one, other):
                if name not in named:
                    at = ("labels", "noise", "confusions", one)
                    yield f"there is no class '{name}'", at, nearest(name, named)


def _cascade(spec: Spec) -> Iterator[Fault]:
    try:
        listed = assistants(spec)
    except ValueError as error:
        yield str(error), ("cascade",), ""
        return
    shares = [s for s in spec.cascade if isinstance(s, float)]
    if shares != sorted(shares, reverse=True):
        yield "shares go from large to small", ("cascade",), f"[{', '.join(f'{s:g}' for s in sorted(shares)[::-1])}]"
    yield from guided(spec)
    yield from phases_fit(spec, listed)
    if not any(p.losses.comparing(FEATURES) for p in spec.distill.phases.values()):
        return
    students = [*listed, spec.student]
    for i, upper in enumerate([spec.teacher, *listed]):
        try:
            matched = matching(spec, students[i], upper)
        except ValueError as error:
            explicit = isinstance(spec.distill.pairing, tuple)
            at: tuple[str | int, ...] = ("distill", "pairing") if explicit else ("teacher",) if i == 0 else ("cascade",)
            yield f"the substages of {at[0]} do not match the student's: {error}", at, ""
            continue
        yield from compared(spec, matched, len(student_cut(students[i])))
