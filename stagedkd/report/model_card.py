"""README.md of a student, a model card in the form of the Hugging Face hub: a header of metadata, then words."""

from __future__ import annotations

import json

from stagedkd.report.card import StudentCard
from stagedkd.report.comparison import flops_text
from stagedkd.report.results import NetworkResult, Results
from stagedkd.report.templates import template
from stagedkd.spec.schema import Simulated


def model_card(results: Results, card: StudentCard) -> str:
    """Write the model card of an experiment's student."""
    section = results.plan.spec.data
    simulated = isinstance(section, Simulated)
    path = "" if simulated else str(getattr(section, "path", ""))
    compute = results.student.train_flops
    assistants = ", ".join(each.arch for each in results.assistants)
    values = {
        "data": f"{section.kind}, simulated" if simulated else path or section.kind,
        "kind": section.kind,
        "headline": headline(results),
        "rate": _rate(card),
        "clips": results.data["clips"].get(results.split, 0),
        "choice": _choice(results),
        "through": f" by way of {assistants}" if assistants else "",
        "compute": "" if compute is None else f" That took {flops_text(compute)} of training compute.",
    }
    page = template("model_card.md.j2", plain=True).render(r=results, card=card, text=_text, pct=_pct, **values)
    return page.rstrip() + "\n"


def headline(results: Results) -> str:
    """One sentence on the student: its size, its accuracy, and that beside teacher and control."""
    student, teacher, control = results.student, results.teacher, results.control
    if not student.measured:
        return f"A student of {student.params:,} parameters, whose accuracy was not measured."
    ratio = student.smaller_than(teacher)
    size = f", {ratio:.1f} times fewer than its teacher's" if ratio is not None else ""
    text = f"A student of {student.params:,} parameters{size}: top-1 {_pct(student.top1)}"
    beside = [f"the teacher has {_pct(teacher.top1)}"] if teacher.measured else []
    if control is not None and control.measured:
        beside.append(f"the same network without a teacher {_pct(control.top1)}")
    text += f"; {' and '.join(beside)}." if beside else "."
    if control is not None and control.measured:
        text += _beside_control(student, control)
    return text


def _beside_control(student: NetworkResult, control: NetworkResult) -> str:
    """Say so if the student is not shown to be better than its control."""
    if student.interval[0] > control.interval[1]:
        return ""
    if student.top1 <= control.top1:
        return " So the distillation did not help here."
    return " The intervals overlap: these clips are too few to tell whether the distillation helped."


def _choice(results: Results) -> str:
    if results.split == "test":
        return "Nothing was trained or selected on it."
    return "Settings may have been chosen on this split, so expect a little less on new videos."


def _rate(card: StudentCard) -> str:
    """The choice of frames, in words."""
    frames = card.frames
    if frames.sampler == "segments":
        return "one from each of as many equal parts"
    step = "" if frames.stride == 1 else f", {frames.stride} apart"
    return f"dense{step}" + (f", {frames.rate:g} ticks a second" if frames.rate else "")


def _pct(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def _text(value: object) -> str:
    """A value as YAML that no character can break."""
    return json.dumps(str(value), ensure_ascii=False)
