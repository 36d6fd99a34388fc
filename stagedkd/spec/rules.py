"""Rules over several fields of a spec. Each problem carries the path at which it is shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from stagedkd.spec.cascade import LARGEST_HOP, assistants, cascade_problems, settings_of, twin_notes
from stagedkd.spec.cuts import cut_problems, number_problem, student_cut
from stagedkd.spec.families import FAMILIES, class_names, mirror_pairs
from stagedkd.spec.fields import nearest
from stagedkd.spec.labelled import (
    label_source,
    label_use_problems,
    out_of_fold_warnings,
    refined_teacher_problems,
    refined_teachers,
    sees_problems,
)
from stagedkd.spec.method_rules import (
    embedding_problems,
    graft_problems,
    guide_problems,
    head_notes,
    pair_problems,
    phase_problems,
)
from stagedkd.spec.outputs import outputs_problems
from stagedkd.spec.pairing import matching
from stagedkd.spec.problems import PathProblem
from stagedkd.spec.quantise import quantise_problems
from stagedkd.spec.rates import rate_problems
from stagedkd.spec.schedule import PhaseProblem, phase_epochs
from stagedkd.spec.schema import (
    EMBEDDED,
    FEATURES,
    RESPONSES,
    Asymmetric,
    Clip,
    NetworkFields,
    Phase,
    Simulated,
    Spec,
    Student,
    StudentFields,
    Teacher,
    TeacherFields,
    TrainPatch,
    Widened,
    is_weight_file,
    sides,
    size_text,
)
from stagedkd.spec.schema.networks.base import WEIGHT_SUFFIXES
from stagedkd.spec.schema.videos import has_own
from stagedkd.spec.yaml import Path_

USE_REFINED = "add the loss pseudo, set teacher.labels: refined, or remove refine"
CUT = "add student.substages"
SUFFIXES = f"{', '.join(WEIGHT_SUFFIXES[:-1])} or {WEIGHT_SUFFIXES[-1]}"


def check_rules(spec: Spec) -> list[PathProblem]:
    """Return all problems that no single field shows. The rules of the hops run only if the others find nothing."""
    problems = [*_networks(spec)]
    if any(number_problem(network) for _, network in _all_networks(spec)):
        return problems  # the other rules would count substages that there are not
    problems += [*_phases(spec), *_epochs(spec), *_labels(spec), *_refined(spec), *_views(spec)]
    problems += outputs_problems(spec)
    problems += [*label_use_problems(spec), *refined_teacher_problems(spec), *sees_problems(spec)]
    problems += [*_control(spec), *quantise_problems(spec)]
    return problems or [*_cascade(spec)]


def warnings(spec: Spec) -> list[PathProblem]:
    """Return what is allowed but probably not meant, for a spec without problems."""
    networks: list[Teacher | Student] = [spec.teacher, *assistants(spec), spec.student]
    sizes = [network.trunk_params for network in networks]
    problems = [*_squeezed(spec), *twin_notes(spec), *head_notes(spec)]
    for hop in range(1, len(networks)):
        above, below = sizes[hop - 1], sizes[hop]
        path: Path_ = ("student",) if hop == len(networks) - 1 else ("cascade",)
        if path == ("cascade",) and spec.cascade != "auto":
            path = ("cascade", hop - 1)
        if above and below and below > above:
            message = f"hop {hop} goes from {above:,} to {below:,} parameters: the network grows"
            problems.append(PathProblem(message, path, ""))
        elif above and below and above / below > LARGEST_HOP:
            message = f"hop {hop} is a {above / below:.1f}x gap ({above:,} to {below:,} parameters)"
            tried = spec.cascade == "auto" or not spec.student.widths  # or it could not widen the student
            more = "list assistants to come below it" if tried else "cascade: auto adds assistants"
            hint = f"{LARGEST_HOP:g}x is the usual limit; {more}"
            problems.append(PathProblem(message, path, hint))
    return [*problems, *out_of_fold_warnings(spec)]


def _all_networks(spec: Spec) -> Iterator[tuple[Path_, Teacher | Student]]:
    yield ("teacher",), spec.teacher
    for i, teacher in enumerate(spec.co_teachers):
        yield ("co_teachers", i), teacher
    if spec.cascade != "auto":
        for i, item in enumerate(spec.cascade):
            if isinstance(item, NetworkFields):
                yield ("cascade", i), item
    yield ("student",), spec.student


def _networks(spec: Spec) -> Iterator[PathProblem]:
    for path, network in _all_networks(spec):
        names = network.block_names
        if isinstance(network.substages, tuple) and names is not None and not network.only_teaches:
            for problem in cut_problems(network.substages, names):
                yield problem._replace(path=(*path, "substages", *problem.path))
        if problem := number_problem(network):
            yield problem._replace(path=(*path, "substages"))
        yield from _input(spec.clip, path, network)
        yield from _weights(path, network)
        started = network.epochs or network.weights or network.pretrained_from or network.only_teaches
        if isinstance(network, TeacherFields) and not started:
            yield PathProblem("a teacher of 0 epochs needs weights", (*path, "epochs"), "add weights: or raise epochs")
        if isinstance(network, TeacherFields):
            yield from _ready(path, network, spec)


def _ready(path: Path_, teacher: Teacher, spec: Spec) -> Iterator[PathProblem]:
    """Check a teacher against what it says about its weights."""
    classes = len(class_names(spec.data)) if isinstance(spec.data, Simulated) else 0
    message, hint = missing_head(teacher, classes if logits_compared(spec) else 0)
    if message:
        yield PathProblem(message, (*path, "weights"), hint)
    if teacher.trains == "head" and not teacher.epochs:
        message = "a teacher of 0 epochs trains nothing, so no head either"
        yield PathProblem(message, (*path, "trains"), "raise epochs, or remove trains")
    elif teacher.trains == "head" and not (teacher.weights or teacher.pretrained_from):
        message = "the head alone is trained, so all blocks would stay random"
        yield PathProblem(message, (*path, "trains"), "add weights, or remove trains")
    if teacher.declared and not (teacher.weights or teacher.pretrained_from or teacher.only_teaches):
        message = "labels are declared for weights that were made elsewhere, and this network has none"
        yield PathProblem(message, (*path, "labels"), "add weights, or set labels: same or all")


def logits_compared(spec: Spec) -> bool:
    """Return whether a loss needs a teacher's logits, so that teachers need a head for the classes of the data."""
    return any(phase.losses.needs_guide_logits or phase.losses.graft for phase in spec.distill.phases.values())


def missing_head(teacher: Teacher, classes: int) -> tuple[str, str]:
    """Return what is wrong with a teacher that is not trained and whose torchvision weights have a head for another
    number of classes than the data, and what to do; ("", "") if nothing is, or `classes` is 0: not known yet."""
    name, count = teacher.weights, teacher.weight_classes
    if teacher.epochs or name is None or is_weight_file(name) or count in (None, classes) or not classes:
        return "", ""
    message = f"with epochs: 0 the head would stay random: {name} has {count} classes, the data {classes}"
    return message, f"raise epochs, or give weights for the {classes} classes of the data"


def weights_note(teacher: Teacher) -> str:
    """Return where a teacher comes from that starts from weights, and what is declared of their labels; "" else."""
    source = teacher.weights or teacher.pretrained_from
    undeclared = "not declared (teacher.labels: {source: ..., count: ...})"
    labels = teacher.declared.title if teacher.declared else undeclared
    if teacher.only_teaches and teacher.user_files is not None:
        return f"is the outputs of {teacher.user_files.path}; the labels behind them: {labels}"
    further = "is trained further here" if teacher.epochs else "is not trained here"
    if teacher.epochs and teacher.trains == "head":
        further = "its head alone is trained here"
    return f"comes from {source} and {further}; the labels behind its weights: {labels}" if source else ""


def _input(clip: Clip, path: Path_, network: Teacher | Student) -> Iterator[PathProblem]:
    """Check that a network takes the clips that it sees, and that they are no larger than the view."""
    frames, size = clip.seen(network.input)
    (least, side), (height, width) = network.least_input, sides(size)
    if network.fixed_input and network.fixed_input != (frames, size):
        wanted, only = network.fixed_input
        hint = f"set clip: {{frames: {wanted}, size: {size_text(only)}}}, and an input: for networks that need less"
        message = f"{network.title} takes only clips of {wanted}x{'x'.join(map(str, sides(only)))}"
        yield PathProblem(message, (*path, "arch"), hint)
    elif frames < least or min(height, width) < side:
        message = f"{network.arch} needs at least {least} frames of {side}x{side}, not {frames}x{height}x{width}"
        hint = f"set clip.frames to {least} or more, and both sides of clip.size to {side} or more"
        yield PathProblem(message, (*path, "arch"), hint)
    if frames > clip.frames:
        message = f"input.frames is {frames}, but clip.frames is only {clip.frames}"
        hint = "raise clip.frames; the other networks can have an input of their own"
        yield PathProblem(message, (*path, "input", "frames"), hint)
    if any(mine > most for mine, most in zip((height, width), sides(clip.size), strict=True)):
        message = f"input.size is {size_text(size)}, but clip.size is only {size_text(clip.size)}"
        hint = "raise clip.size; the other networks can have an input of their own"
        yield PathProblem(message, (*path, "input", "size"), hint)


def _squeezed(spec: Spec) -> Iterator[PathProblem]:
    """Find inputs of another shape than the view, which distort its pictures."""
    tall, wide = sides(spec.clip.size)
    for path, network in _all_networks(spec):
        height, width = sides(spec.clip.seen(network.input)[1])
        if abs(height - width * tall / wide) > 1 and abs(width - height * wide / tall) > 1:
            message = f"input.size {height}x{width} distorts pictures: the view is {tall}x{wide}"
            kept = size_text((height, max(8, round(height * wide / tall))))
            hint = "" if network.fixed_input else f"{kept} keeps the shape"
            yield PathProblem(message, (*path, "input", "size"), hint)


def _weights(path: Path_, network: Teacher | Student) -> Iterator[PathProblem]:
    name = network.weights
    if name is not None and network.pretrained_from:
        hint = "remove weights, or set pretrained: false"
        yield PathProblem("the model already has pretrained weights", (*path, "weights"), hint)
    if name is None or is_weight_file(name):
        return
    known = network.weight_names
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        choices = f"{', '.join(known)}{' or ' if known else ''}the path of a {SUFFIXES} file"
        hint = f"did you mean '{near[0]}'?" if near else f"use {choices}"
        yield PathProblem(f"there are no weights '{name}'", (*path, "weights"), hint)


def _phases(spec: Spec) -> Iterator[PathProblem]:
    parts = len(student_cut(spec.student))
    for name, phase in spec.distill.phases.items():
        path = ("distill", "phases", name)
        response, feature = phase.losses.comparing(RESPONSES), phase.losses.comparing(FEATURES)
        if phase.substages == "one_by_one" and response:
            loss = min(response)
            yield PathProblem(
                f"'{loss}' needs logits, but a phase with substages: one_by_one never reaches the head",
                (*path, "losses", loss),
                "move it to a phase over all substages",
            )
        if phase.substages == "head" and (alone := phase.losses.comparing(FEATURES | EMBEDDED)):
            message = f"phase '{name}' trains the head alone, but '{min(alone)}' trains substages"
            yield PathProblem(message, (*path, "losses", min(alone)), "use losses on logits and labels, such as ce")
            continue
        yield from _substages(name, phase, parts)
        if feature and not parts:
            message = f"'{min(feature)}' compares substages, but the student declares none"
            yield PathProblem(message, (*path, "losses"), CUT)
        if phase.epochs is not None and phase.share is not None:
            yield PathProblem(f"phase '{name}' has epochs and a share", (*path, "share"), "remove one of the two")
        if phase.ramp is not None and not feature:
            yield PathProblem("ramp needs a loss on features, and this phase has none", (*path, "ramp"), "remove ramp")
        if feature and phase.substages == "one_by_one" and (alone := phase.losses.comparing({"substages"})):
            message = f"'{min(alone)}' compares substages with each other, but under one_by_one there is only one"
            yield PathProblem(message, (*path, "losses", min(alone)), "move it to a phase over all substages")
    trained = [p for p in spec.distill.phases.values() if p.losses.comparing(RESPONSES)]
    if not trained:
        yield PathProblem("no phase trains the head", ("distill", "phases"), "add a phase with kd or ce")


def _substages(name: str, phase: Phase, parts: int) -> Iterator[PathProblem]:
    """Check the substages that a phase names, of the student's `parts`."""
    path = ("distill", "phases", name, "substages")
    if phase.substages == ():
        yield PathProblem(f"phase '{name}' trains nothing: it names no substage", path, "for example substages: all")
    if isinstance(phase.substages, tuple):
        for i, number in enumerate(phase.substages):
            if parts and number > parts:
                yield PathProblem(f"there is no substage {number}", (*path, i), f"the student has {parts}")
        if not parts:
            yield PathProblem(f"phase '{name}' names substages, but the student declares none", path, CUT)
        if len(set(phase.substages)) != len(phase.substages):
            yield PathProblem("a substage is listed twice", path, "list each substage once")


def _epochs(spec: Spec) -> Iterator[PathProblem]:
    hops: list[tuple[Path_, int | None, int]] = [
        (path, network.epochs, len(student_cut(network)))
        for path, network in _all_networks(spec)
        if isinstance(network, StudentFields)
    ]
    cut, listed = len(student_cut(spec.student)), spec.cascade if spec.cascade != "auto" else ()
    hops += [(("cascade", i), item.epochs, cut) for i, item in enumerate(listed) if isinstance(item, Widened)]
    for path, epochs, parts in hops:
        try:
            phase_epochs(spec.distill.phases, epochs or spec.student.epochs, parts)
        except PhaseProblem as problem:
            above = path if epochs is not None else ("student",)
            phase: Path_ = ("distill", "phases", problem.phase, *filter(None, [problem.field]))
            yield PathProblem(str(problem), phase if problem.phase else (*above, "epochs"), problem.hint)


def _refined(spec: Spec) -> Iterator[PathProblem]:
    using = [name for name, phase in spec.distill.phases.items() if phase.losses.pseudo]
    if spec.refine is None:
        for name in using:
            path = ("distill", "phases", name, "losses", "pseudo")
            hint = "add refine: {kind: noise_model}, or remove pseudo"
            yield PathProblem("'pseudo' needs refined labels", path, hint)
        return
    if spec.labels.clean == 0:
        yield PathProblem("'refine' needs clean labels, but labels.clean is 0", ("refine",), "raise labels.clean")
    if spec.refine.by != "student" and not (spec.refine.epochs or spec.teacher.epochs):
        message = "refine trains the teacher out of fold, but the teacher has 0 epochs"
        yield PathProblem(message, ("refine",), "set refine.epochs, or refine.by: student")
    if spec.teacher.labels == "all" and spec.distill.teacher.labels is None:
        yield PathProblem(
            "a teacher trained on the true labels cannot refine labels: it would leak the hidden truth",
            ("teacher", "labels"),
            "set labels: same, or remove refine",
        )
    if not using and not refined_teachers(spec):
        yield PathProblem("no phase uses the refined labels", ("refine",), USE_REFINED)


def _labels(spec: Spec) -> Iterator[PathProblem]:
    if spec.labels.clean + spec.labels.noisy > 0:
        return
    unlabelled = "labels.clean and labels.noisy are 0"
    for name, phase in spec.distill.phases.items():
        for loss in sorted(phase.losses.given_labels):
            path = ("distill", "phases", name, "losses", loss)
            yield PathProblem(f"'{loss}' has no labels: {unlabelled}", path, f"raise labels.clean, or remove {loss}")
    for path, teacher in _all_networks(spec):
        if not isinstance(teacher, TeacherFields) or not teacher.epochs:
            continue
        if label_source(spec, teacher) == "same":
            hint = "raise labels.clean, or set labels: all"
            yield PathProblem(f"the teacher has no labels: {unlabelled}", path, hint)
    if spec.control:
        yield PathProblem(f"control: ce has no labels: {unlabelled}", ("control",), "remove control")


def _control(spec: Spec) -> Iterator[PathProblem]:
    if spec.control is None and spec.control_train != TrainPatch():
        yield PathProblem("control_train has no control", ("control_train",), "add control: ce")


def _views(spec: Spec) -> Iterator[PathProblem]:
    if spec.clip.decoder == "torchcodec" and spec.clip.cache != "none":
        hint = "set cache: none (pyav fills a cache once, in sequence)"
        yield PathProblem("decoder: torchcodec works only without a cache", ("clip", "decoder"), hint)
    if isinstance(spec.data, Simulated):
        if not isinstance(spec.clip.size, int):
            message = f"simulated clips are squares, and clip.size is {size_text(spec.clip.size)}"
            hint = "write one number; videos can have any shape, also those of stagedkd data export"
            yield PathProblem(message, ("clip", "size"), hint)
        if spec.evaluate.clips > 1 or spec.evaluate.crops > 1:
            yield PathProblem("a simulated clip has only one view", ("evaluate",), "set clips: 1 and crops: 1")
        mirrored = mirror_pairs(class_names(spec.data))
        if spec.augment.flip and mirrored:
            message = f"{' and '.join(mirrored[0])} are mirror images of each other"
            yield PathProblem(message, ("augment", "flip"), "set flip: 0")
        yield from _classes(spec, spec.data)
    elif spec.evaluate.split == "test" and getattr(spec.data, "test_folds", 1) == 0 and not has_own(spec.data, "test"):
        message, hint = "there is no test split: data.test_folds is 0", "set split: val, or raise data.test_folds"
        yield PathProblem(message, ("evaluate", "split"), hint)


def _classes(spec: Spec, data: Simulated) -> Iterator[PathProblem]:
    family, names = FAMILIES[data.kind], class_names(data)
    for i, name in enumerate(names):
        if name not in family:
            yield PathProblem(f"'{data.kind}' has no class '{name}'", ("data", "classes", i), nearest(name, family))
    if isinstance(spec.labels.noise, Asymmetric):
        for one, other in spec.labels.noise.confusions.items():
            for name in (one, other):
                if name not in names:
                    path = ("labels", "noise", "confusions", one)
                    yield PathProblem(f"there is no class '{name}'", path, nearest(name, names))


def _cascade(spec: Spec) -> Iterator[PathProblem]:
    try:
        listed = assistants(spec)
    except ValueError as error:
        yield PathProblem(str(error), ("cascade",), "")
        return
    yield from cascade_problems(spec, listed)
    yield from rate_problems(spec, [(settings_of(spec, i), network) for i, network in enumerate(listed)])
    yield from guide_problems(spec)
    yield from phase_problems(spec, listed)
    yield from embedding_problems(spec)
    yield from graft_problems(spec, [spec.teacher, *listed])
    if not any(p.losses.comparing(FEATURES) for p in spec.distill.phases.values()):
        return
    students = [*listed, spec.student]
    for i, upper in enumerate([spec.teacher, *listed]):
        try:
            matched = matching(spec, students[i], upper)
        except ValueError as error:
            explicit = isinstance(spec.distill.pairing, tuple)
            path: Path_ = ("distill", "pairing") if explicit else ("teacher",) if i == 0 else ("cascade",)
            yield PathProblem(f"the substages of {path[0]} do not match the student's: {error}", path, "")
            continue
        yield from pair_problems(spec, matched, len(student_cut(students[i])))
