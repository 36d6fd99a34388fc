"""`compile_plan`: a pure function from a spec and a lock to a plan. No torch, no disk."""

from __future__ import annotations

from stagedkd.plan.graph import Plan, Plans, Stage
from stagedkd.plan.key import stage_key
from stagedkd.plan.lock import Lock, data_id, weights_id
from stagedkd.plan.work import Cut, Distill, Evaluate, PhaseWork, Prepare, Reading, Teach, Weaken, Weights, Work
from stagedkd.spec.cascade import assistants
from stagedkd.spec.cuts import matching_cut, student_cut
from stagedkd.spec.families import class_names, mirror_pairs
from stagedkd.spec.load import Experiment
from stagedkd.spec.rules import warnings
from stagedkd.spec.schedule import phase_epochs
from stagedkd.spec.schema import (
    FEATURE_LOSSES,
    RESPONSE_LOSSES,
    Augment,
    Ce,
    Clip,
    InstanceDependent,
    Losses,
    Phase,
    Simulated,
    Spec,
    Student,
    Teacher,
    Train,
    arch_of,
)


def compile_plan(spec: Spec, lock: Lock | None = None) -> Plan:
    """Compile a validated spec.

    Args:
        spec: from `load_spec`.
        lock: from `read_lock`; without an entry for the data or weights, keys downstream are None ("unlocked").
    """
    return _Compiler(spec, lock or Lock()).plan()


def compile_experiment(experiment: Experiment, lock: Lock | None = None) -> Plans:
    """Compile every cell of an experiment; see `compile_plan`."""
    cells = {cell.name: compile_plan(cell.spec, lock) for cell in experiment.cells}
    labels = {cell.name: cell.labels for cell in experiment.cells}
    return Plans(experiment.name, experiment.axes, cells, labels)


class _Compiler:
    """Collects stages in topological order; each is added with its key once those above it have theirs."""

    def __init__(self, spec: Spec, lock: Lock) -> None:
        self.spec, self.lock = spec, lock
        self.stages: dict[str, Stage] = {}
        self.notes: list[str] = []

    def plan(self) -> Plan:
        spec = self.spec
        data, labels = self._data_stages()
        self._teach(data, labels)
        above, networks = "teacher", ["teacher"]
        upper: Teacher | Student = spec.teacher
        listed = assistants(spec)
        for i, network in enumerate((*listed, spec.student)):
            name = "student" if i == len(listed) else f"assistant-{i + 1}"
            self._distill(name, network, upper, {"data": data, "labels": labels, "teacher": above})
            above, upper = name, network
            networks.append(name)
        if spec.control == "ce":
            self._control(data, labels)
            networks.append("control-ce")
        for name in networks:
            self._evaluate(name, data)
        self.notes += [message for message, _, _ in warnings(spec)]
        return Plan(spec.name, spec, self.lock, tuple(self.stages.values()), tuple(self.notes))

    def _add(self, name: str, work: Work, *, locked: bool = True, **needs: str) -> str:
        above = {role: self.stages[upstream] for role, upstream in needs.items()}
        identity = stage_key(work, {role: stage.identity for role, stage in above.items()})
        locked = locked and all(stage.locked for stage in above.values())
        self.stages[name] = Stage(name, work, needs, identity, locked)
        return name

    def _data_stages(self) -> tuple[str, str]:
        data = self.spec.data
        name = data_id(data)
        entry = self.lock.data.get(name) if name else None
        clip, labels = self._clip(), self.spec.labels
        reading = Reading(decoder=clip.decoder, span=clip.span, rate=clip.rate, refuse=clip.short == "refuse")
        work = Prepare(
            data=data, fingerprint=entry.fingerprint if entry else None,
            reading=None if isinstance(data, Simulated) else reading,
        )  # fmt: skip
        prepare = self._add("data", work, locked=entry is not None or name is None)
        by_look = isinstance(labels.noise, InstanceDependent) and labels.noisy > 0
        return prepare, self._add("labels", Weaken(labels=labels, clip=clip if by_look else None), data=prepare)

    def _clip(self) -> Clip:
        """The view as it enters keys: streamed frames have the pixels of cached ones."""
        clip = self.spec.clip
        return clip.model_copy(update={"cache": "raw"}) if clip.cache == "none" else clip

    def _views(self) -> tuple[Clip, Augment]:
        augment, data = self.spec.augment, self.spec.data
        entry = self.lock.data.get(str(data_id(data)))
        names = class_names(data) if isinstance(data, Simulated) else entry.classes if entry else ()
        mirrored = mirror_pairs(names)
        if augment.flip and mirrored:
            self._note(f"{' and '.join(mirrored[0])} are each other's mirror image, and augment.flip is not 0")
        if augment.flip is None:
            augment = augment.model_copy(update={"flip": 0.0 if mirrored else 0.5})
            if mirrored and not isinstance(data, Simulated):
                self._note(f"no mirror images: {' and '.join(mirrored[0])} are classes (augment.flip)")
        return self._clip(), augment

    def _note(self, text: str) -> None:
        self.notes += [] if text in self.notes else [text]

    def _weights(self, network: Teacher | Student) -> tuple[Weights | None, bool]:
        if network.weights is None:
            return None, True
        sha256 = self.lock.weights.get(weights_id(network.weights, network))
        return Weights(name=network.weights, sha256=sha256), sha256 is not None

    def _teach(self, data: str, labels: str) -> None:
        teacher = self.spec.teacher
        clip, augment = self._views()
        weights, locked = self._weights(teacher)
        work = Teach(
            arch=arch_of(teacher), input=teacher.input, weights=weights, labels=teacher.labels, clip=clip,
            augment=augment, phase=self._ce_phase(teacher, teacher.epochs) if teacher.epochs else None,
            seed=teacher.seed,
        )  # fmt: skip
        self._add("teacher", work, locked=locked, data=data, labels=labels)
        if teacher.labels == "all":
            self.notes.append("the teacher is trained on the true labels of all training clips (teacher.labels: all)")

    def _control(self, data: str, labels: str) -> None:
        """The CE-only student of equal steps: the same epochs over all phases, on the same labels."""
        student = self.spec.student
        clip, augment = self._views()
        weights, locked = self._weights(student)
        epochs = sum(phase.epochs for phase in self._phases(student))
        work = Teach(
            arch=arch_of(student), input=student.input, weights=weights, labels="same", clip=clip, augment=augment,
            phase=self._ce_phase(student, epochs), seed=self.spec.seed,
        )  # fmt: skip
        self._add("control-ce", work, locked=locked, data=data, labels=labels)

    def _ce_phase(self, network: Teacher | Student, epochs: int) -> PhaseWork:
        train = self.spec.train.patched(network.train)
        losses = Losses(ce=Ce())
        return PhaseWork(
            name="train", epochs=epochs, trained=(0,), frozen=(), pairs=(), head=True, losses=losses, train=train
        )

    def _distill(self, name: str, network: Student, upper: Teacher | Student, needs: dict[str, str]) -> None:
        clip, augment = self._views()
        weights, locked = self._weights(network)
        cut = student_cut(network)
        work = Distill(
            arch=arch_of(network), input=network.input, weights=weights, cut=cut,
            teacher=arch_of(upper), teacher_input=upper.input,
            teacher_cut=matching_cut(upper, len(cut)) if self._pairs_needed() else (),
            phases=self._phases(network), clip=clip, augment=augment, seed=self.spec.seed,
        )  # fmt: skip
        self._add(name, work, locked=locked, **needs)

    def _pairs_needed(self) -> bool:
        return any(phase.losses.on(FEATURE_LOSSES) for phase in self.spec.distill.phases.values())

    def _phases(self, network: Student) -> tuple[PhaseWork, ...]:
        train = self.spec.train.patched(network.train)
        cut = student_cut(network)
        declared = self.spec.distill.phases
        epochs = phase_epochs(declared, network.epochs or self.spec.student.epochs, len(cut))
        phases: list[PhaseWork] = []
        for name, phase in declared.items():
            patched, count = train.patched(phase.train), epochs[name]
            if phase.substages == "one_by_one":
                phases += [_phase_work(f"{name}.{k + 1}", count, phase, (k,), patched, cut) for k in range(len(cut))]
            else:
                numbers = range(len(cut)) if phase.substages == "all" else sorted(k - 1 for k in phase.substages)
                phases.append(_phase_work(name, count, phase, tuple(numbers), patched, cut))
        return tuple(phases)

    def _evaluate(self, name: str, data: str) -> None:
        spec, trained = self.spec, self.stages[name].work
        assert isinstance(trained, (Teach, Distill))
        work = Evaluate(
            arch=trained.arch, input=trained.input, clip=self._clip(), split=spec.evaluate.split,
            clips=spec.evaluate.clips, crops=spec.evaluate.crops, batch=spec.evaluate.batch,
        )  # fmt: skip
        self._add(f"evaluate-{name}", work, data=data, network=name)


def _phase_work(name: str, epochs: int, phase: Phase, trained: tuple[int, ...], train: Train, cut: Cut) -> PhaseWork:
    """Which substages a phase trains, runs frozen and compares. The head is run where a loss needs logits."""
    head = bool(phase.losses.on(RESPONSE_LOSSES))
    last = len(cut) - 1 if head else max(trained)
    return PhaseWork(
        name=name, epochs=epochs, trained=trained, frozen=tuple(k for k in range(last + 1) if k not in trained),
        pairs=trained if phase.losses.on(FEATURE_LOSSES) else (), head=head, losses=phase.losses,
        train=train,
    )  # fmt: skip
