"""Compile a spec and a lock to a plan. This is a pure function: it needs neither torch nor the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from stagedkd.errors import Problem, SpecError
from stagedkd.plan.graph import Plan, Plans, Role, Stage
from stagedkd.plan.key import stage_key
from stagedkd.plan.kind import Weights
from stagedkd.plan.lock import Lock, data_id, weights_id
from stagedkd.plan.phases import ce_phase, hop_phases
from stagedkd.plan.work import (
    DistillWork,
    EvaluateWork,
    GuideNetwork,
    PrepareWork,
    Reading,
    RefineWork,
    TeachWork,
    Trainee,
    WeakenWork,
    Work,
)
from stagedkd.spec.cascade import assistants
from stagedkd.spec.cuts import student_cut
from stagedkd.spec.families import mirror_pairs
from stagedkd.spec.grid import setting_of
from stagedkd.spec.labelled import class_weights_problem, label_source, relevant
from stagedkd.spec.load import Experiment
from stagedkd.spec.pairing import matching
from stagedkd.spec.rules import logits_compared, missing_head, warnings, weights_note
from stagedkd.spec.schema import (
    FEATURES,
    Augment,
    Clip,
    InstanceDependent,
    OutputsArch,
    Simulated,
    Spec,
    Student,
    StudentFields,
    Teacher,
    TeacherFields,
    arch_of,
)
from stagedkd.spec.schema import Refine as Rule
from stagedkd.spec.tuned import ALL, edge_notes, taken_note


def compile_plan(spec: Spec, lock: Lock | None = None) -> Plan:
    """Compile a validated spec.

    Args:
        spec: from `load_spec`.
        lock: from `read_lock`. If it has no entry for the data or for weights, the keys of all stages downstream are
            None ("unlocked").
    Raises:
        SpecError: a network of 0 epochs has weights for another number of classes than the lock says.
    """
    return _Compiler(spec, lock or Lock()).plan()


def compile_experiment(experiment: Experiment, lock: Lock | None = None) -> Plans:
    """Compile every cell of an experiment. See `compile_plan`; the problems of all cells are reported together."""
    cells: dict[str, Plan] = {}
    problems: list[Problem] = []
    for cell in experiment.cells:
        try:
            cells[cell.name] = compile_plan(cell.spec, lock)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    labels = {cell.name: cell.labels for cell in experiment.cells}
    notes = edge_notes(experiment.tuned)
    for name, plan in cells.items():
        taken = taken_note(experiment.tuned.get(setting_of(labels[name]) or ALL))
        cells[name] = replace(plan, notes=(*plan.notes, *notes, *taken))
    return Plans(experiment.name, experiment.axes, cells, labels, experiment.tuned, experiment.declared)


FRAMES = {
    "shuffled": "a control: networks are evaluated on clips whose frames are shuffled (evaluate.frames)",
    "single": "a control: networks are evaluated on one frame of each clip, repeated (evaluate.frames)",
}


class _Compiler:
    """Collects the stages of one plan in topological order. A stage is added with its key after all of its inputs."""

    def __init__(self, spec: Spec, lock: Lock) -> None:
        self.spec, self.lock = spec, lock
        self.stages: dict[str, Stage] = {}
        self.notes: list[str] = []
        self.problems: list[Problem] = []

    def plan(self) -> Plan:
        spec = self.spec
        data, labels = self._data_stages()
        row: list[Teacher | Student] = [spec.teacher, *assistants(spec), spec.student]
        names = ["teacher", *(f"assistant-{i}" for i in range(1, len(row) - 1)), "student"]
        needs = {"data": data, "labels": labels}
        if any(label_source(spec, teacher) == "refined" for teacher in (spec.teacher, *spec.co_teachers)):
            rounds = self._refine(row, needs)  # the teachers come after the rounds
            networks = self._teachers(needs, rounds)
        else:
            networks = self._teachers(needs, [])
            rounds = self._refine(row, needs)
        for hop in range(1, len(row)):
            needs = {"data": data, "labels": labels, "teacher": names[hop - 1]}
            if rounds and any(phase.losses.pseudo for phase in spec.distill.phases.values()):
                between = spec.refine is not None and spec.refine.between_hops
                needs["refined"] = rounds[min(hop, len(rounds)) - 1] if between else rounds[-1]
            self._distill(names[hop], row[: hop + 1], needs, names[: hop - 1])
        networks += names[1:]
        if spec.control == "ce":
            self._control(data, labels)
            networks.append("control-ce")
        for name in networks:
            self._evaluate(name, data)
        for network in (*row, *spec.co_teachers):
            if model := network.unpinned_model:
                self._note(f"{model} is known only by its name: if its owner changes it, no key changes")
        self.notes += [message for message, _, _ in warnings(spec)]
        self.problems += self._class_weights()
        if self.problems:
            raise SpecError(self.problems)
        stages, every = tuple(self.stages.values()), spec.evaluate.every
        return Plan(spec.name, self.lock, stages, spec.clip, every, spec, tuple(self.notes))

    def _class_weights(self) -> list[Problem]:
        """The class weights that do not fit the classes of the data set, as far as the lock knows these."""
        classes = self.lock.classes_of(self.spec.data)
        problems: list[Problem] = []
        for phase in (phase for stage in self.stages.values() for phase in stage.work.trainings):
            if phase.train.class_weights is None:
                continue
            _, message, hint = class_weights_problem(phase.train.class_weights, classes)
            problems += [Problem(f"train.class_weights: {message}", None, hint)] if message else []
        return list(dict.fromkeys(problems))

    def _add(self, role: Role, name: str, work: Work, needs: Mapping[str, str], *, locked: bool = True) -> str:
        """Add a stage. `needs` maps the names of its inputs to stages; `locked` says whether the lock has everything
        that the work itself reads. Returns the stage's name."""
        inputs = {label: self.stages[upstream] for label, upstream in needs.items()}
        identity = stage_key(work, {label: stage.identity for label, stage in inputs.items()})
        locked = locked and all(stage.locked for stage in inputs.values())
        self.stages[name] = Stage(name, work, needs, identity, locked, role)
        return name

    def _data_stages(self) -> tuple[str, str]:
        """Add the stages that index the data set and that give its clips labels. Returns their names."""
        data = self.spec.data
        name = data_id(data)
        entry = self.lock.data.get(name) if name else None
        clip, labels = self._clip(), self.spec.labels
        reading = Reading(decoder=clip.decoder, span=clip.span, rate=clip.rate, refuse=clip.short == "refuse")
        work = PrepareWork(
            data=data,
            fingerprint=entry.fingerprint if entry else None,
            reading=None if isinstance(data, Simulated) else reading,
        )
        prepare = self._add("data", "data", work, {}, locked=entry is not None or name is None)
        by_looks = isinstance(labels.noise, InstanceDependent) and labels.noisy > 0
        weaken = WeakenWork(labels=labels, clip=clip if by_looks else None)
        return prepare, self._add("labels", "labels", weaken, {"data": prepare})

    def _clip(self) -> Clip:
        """The spec's clip as it enters keys. `cache: none` becomes `cache: raw`, since streamed frames have the same
        pixels as cached ones."""
        clip = self.spec.clip
        return clip.model_copy(update={"cache": "raw"}) if clip.cache == "none" else clip

    def _views(self) -> tuple[Clip, Augment]:
        """The clip and the augmentations as they enter keys. If `augment.flip` is unset, it becomes 0.5, or 0 if
        classes are each other's mirror image."""
        augment, data = self.spec.augment, self.spec.data
        mirrored = mirror_pairs(self.lock.classes_of(self.spec.data))
        if augment.flip and mirrored:
            self._note(f"{' and '.join(mirrored[0])} are each other's mirror image, but augment.flip is not 0")
        if augment.flip is None:
            augment = augment.model_copy(update={"flip": 0.0 if mirrored else 0.5})
            if mirrored and not isinstance(data, Simulated):
                self._note(f"augment.flip is 0: {' and '.join(mirrored[0])} are each other's mirror image")
        return self._clip(), augment

    def _note(self, text: str) -> None:
        """Add a note to the plan, unless it has it already."""
        self.notes += [] if text in self.notes else [text]

    def _weights(self, network: Teacher | Student) -> tuple[Weights | None, bool]:
        """The weight file that a network starts from, and whether the lock has it (also true without a file)."""
        if network.weights is None:
            return None, True
        sha256 = self.lock.weights.get(weights_id(network.weights, network))
        return Weights(name=network.weights, sha256=sha256), sha256 is not None

    def _teachers(self, needs: Mapping[str, str], rounds: Sequence[str]) -> list[str]:
        """Add the stages of the teacher and the co-teachers. Returns their names."""
        names = [self._teach("teacher", "teacher", self.spec.teacher, needs, rounds)]
        for i, co_teacher in enumerate(self.spec.co_teachers):
            names.append(self._teach("co_teacher", f"teacher-{i + 2}", co_teacher, needs, rounds))
        return names

    def _teach(self, role: Role, name: str, teacher: Teacher, needs: Mapping[str, str], rounds: Sequence[str]) -> str:
        """Add the stage that trains a teacher or co-teacher. Returns its name."""
        use, (clip, augment) = self.spec.distill.teacher, self._views()
        weights, locked = self._weights(teacher)
        source = label_source(self.spec, teacher)
        soft = source == "refined" and self.spec.refine is not None and self.spec.refine.targets == "soft"
        stop = max(1, round(use.stop * teacher.epochs)) if use.stop is not None and teacher.epochs else None
        work = TeachWork(
            arch=arch_of(teacher),
            input=teacher.input,
            weights=weights,
            labels=source,
            declared=teacher.declared,
            headless=not teacher.epochs and not logits_compared(self.spec),
            clip=clip,
            augment=augment,
            phase=ce_phase(self.spec, teacher, teacher.epochs, stop, soft=soft) if teacher.epochs else None,
            seed=teacher.seed,
            sees=self.spec.student.sees if teacher.sees == "same" else None,
            avoids=self.spec.student.sees if teacher.sees == "others" else None,
        )
        refined = {"refined": rounds[-1]} if source == "refined" and rounds else {}
        self._add(role, name, work, {**needs, **refined}, locked=locked)
        if refined:
            self._note(f"the {name} is trained on refined labels: clips that {rounds[-1]} accepts, and the clean ones")
        if source == "all" and teacher.epochs:
            self.notes.append(f"the {name} is trained on the true labels of all training clips (teacher.labels: all)")
        self.notes += [f"the {name} {origin}"] if (origin := weights_note(teacher)) else []
        count = 0 if not logits_compared(self.spec) else len(self.lock.classes_of(self.spec.data))
        message, hint = missing_head(teacher, count)
        self.problems += [Problem(f"{name}: {message}", None, hint)] if message else []
        return name

    def _refine(self, row: list[Teacher | Student], needs: dict[str, str]) -> list[str]:
        """Add a stage for each round of label refinement. Returns their names. `row` holds the teacher, the assistants
        and the student."""
        rule = self.spec.refine
        rounds: list[str] = []
        for number in range(1, rule.rounds + 1) if rule else ():
            assert rule is not None
            hop = min(number, len(row) - 1) if rule.between_hops else 1
            networks = {"teacher": row[hop - 1], "student": row[-1]}
            ends = ("teacher", "student") if rule.by == "both" else (rule.by,)
            trainees = [self._trainee(by, networks[by], rule) for by in ends]
            clip, augment = self._views()
            unused = {"align": 0.0} if rule.kind == "ema" else {"decay": Rule.model_fields["decay"].default}
            work = RefineWork(
                rule=rule.model_copy(update=unused),
                round=number,
                networks=tuple(trainee for trainee, _ in trainees),
                clip=clip,
                augment=augment,
            )
            previous = {"previous": rounds[-1]} if rounds else {}
            locked = all(in_lock for _, in_lock in trainees)
            rounds.append(self._add("refine", f"refine-{number}", work, {**needs, **previous}, locked=locked))
        return rounds

    def _trainee(
        self, by: Literal["teacher", "student"], network: Teacher | Student, rule: Rule
    ) -> tuple[Trainee, bool]:
        """One network of a refinement round, and whether the lock has its weights."""
        weights, locked = self._weights(network)
        epochs = rule.epochs
        if isinstance(network, StudentFields):
            epochs = epochs or sum(phase.epochs for phase in hop_phases(self.spec, network, None))
        phase = ce_phase(self.spec, network, epochs or network.epochs or 0, train=rule.train)
        return Trainee(by=by, arch=arch_of(network), input=network.input, weights=weights, phase=phase), locked

    def _control(self, data: str, labels: str) -> None:
        """Add the control: the student trained by cross-entropy alone, on the same labels, for as many epochs as all
        phases of the distilled student together."""
        student = self.spec.student
        clip, augment = self._views()
        weights, locked = self._weights(student)
        epochs = sum(phase.epochs for phase in hop_phases(self.spec, student, None))
        phase = ce_phase(self.spec, student, epochs)
        train = phase.train.patched(self.spec.control_train).over_phase()
        phase = phase.model_copy(update={"train": relevant(train, phase.losses)})
        work = TeachWork(
            arch=arch_of(student),
            input=student.input,
            weights=weights,
            labels="same",
            clip=clip,
            augment=augment,
            phase=phase,
            seed=self.spec.seed,
            sees=student.sees,
        )
        self._add("control", "control-ce", work, {"data": data, "labels": labels}, locked=locked)

    def _distill(self, name: str, row: Sequence[Teacher | Student], needs: dict[str, str], earlier: list[str]) -> None:
        """Add the stage of one hop.

        Args:
            name: of the stage.
            row: the networks from the teacher down to this hop's student; the last but one is the hop's teacher.
            needs: the stages that give the inputs, without those of further guides.
            earlier: the names of the stages that train the networks above the hop's teacher.
        """
        network, teacher, distill = row[-1], row[-2], self.spec.distill
        assert not isinstance(network, TeacherFields)
        clip, augment = self._views()
        weights, locked = self._weights(network)
        matched = matching(self.spec, network, teacher) if self._pairs_needed() else None
        if (sees := network.sees or self.spec.student.sees) is not None:
            others = {"same": "the same ones", "others": "all others", None: "all of them"}[self.spec.teacher.sees]
            self._note(f"the {name} sees {sees.title} of the training clips, the teacher {others}")
        names, guides = self._guides(row, earlier)
        self._note_limits(row)
        if network.quantise is not None:
            self._note(f"the {name} computes in {network.quantise.to}, and all other networks in float32")
        work = DistillWork(
            arch=arch_of(network),
            input=network.input,
            weights=weights,
            cut=student_cut(network),
            teacher=arch_of(teacher),
            teacher_input=teacher.input,
            teacher_cut=matched.teacher_cut if matched else (),
            share=_guide_weight(teacher),
            guides=guides,
            drop=distill.drop if guides else 0.0,
            pairing=matched.kind if matched else "pairs",
            pair_weights=distill.pair_weights if matched else "uniform",
            normalize=distill.normalize,
            warm_start=distill.warm_start,
            shuffle=distill.teacher.shuffle,
            phases=hop_phases(self.spec, network, matched),
            clip=clip,
            augment=augment,
            seed=self.spec.seed,
            sees=sees,
        )
        needs = {**needs, **dict(zip(work.guide_inputs, names, strict=True))}
        self._add("student" if network is self.spec.student else "assistant", name, work, needs, locked=locked)

    def _note_limits(self, row: Sequence[Teacher | Student]) -> None:
        """Note where the plan cannot do what the spec asks of a hop, and what it does instead."""
        distill = self.spec.distill
        unknown = [network.arch for network in row[-2:] if network.strides is None]
        if distill.pairing == "stride" and unknown and self._pairs_needed():
            self._note(f"the strides of {unknown[0]} are not known to the plan: substages are paired by depth")
        if distill.guides == "dense" and not assistants(self.spec) and not self.spec.co_teachers:
            self._note(
                "distill.guides is dense, but without assistants there is only one guide: this is plain distillation"
            )

    def _guides(
        self, row: Sequence[Teacher | Student], earlier: list[str]
    ) -> tuple[list[str], tuple[GuideNetwork, ...]]:
        """The stages and the networks that guide a hop beside the hop's teacher. Co-teachers guide the first hop. Under
        `guides: dense`, co-teachers and all networks further above guide every hop."""
        if not any(phase.losses.needs_guide_logits for phase in self.spec.distill.phases.values()):
            return [], ()
        co_teachers, dense = self.spec.co_teachers, self.spec.distill.guides == "dense"
        networks: list[tuple[str, Teacher | Student]] = list(zip(earlier, row, strict=False)) if dense else []
        if dense or not earlier:
            networks += [(f"teacher-{i + 2}", teacher) for i, teacher in enumerate(co_teachers)]
        guides = tuple(GuideNetwork(arch=arch_of(n), input=n.input, share=_guide_weight(n)) for _, n in networks)
        return [name for name, _ in networks], guides

    def _pairs_needed(self) -> bool:
        """Whether any phase compares feature maps."""
        return any(phase.losses.comparing(FEATURES) for phase in self.spec.distill.phases.values())

    def _evaluate(self, name: str, data: str) -> None:
        """Add the stage that evaluates the network of stage `name`."""
        spec, trained = self.spec, self.stages[name].work.network
        assert trained is not None
        work = EvaluateWork(
            arch=trained.arch,
            input=trained.input,
            clip=self._clip(),
            split=spec.evaluate.split,
            clips=spec.evaluate.clips,
            crops=spec.evaluate.crops,
            batch=spec.evaluate.batch,
            frames=None if isinstance(trained.arch, OutputsArch) else spec.evaluate.frames,
        )
        if spec.evaluate.frames:
            whole = f"the outputs of the {name} are those of whole clips: evaluate.frames does not change them"
            self._note(FRAMES[work.frames] if work.frames else whole)
        self._add("evaluate", f"evaluate-{name}", work, {"data": data, "network": name})


def _guide_weight(network: Teacher | Student) -> float:
    """The weight of a network among several guides. An assistant's is 1."""
    return network.share if isinstance(network, TeacherFields) else 1.0
