"""README.md of a student, a model card in the form of the Hugging Face hub: a header of metadata, then words."""

from __future__ import annotations

import json

from stagedkd.report.card import StudentCard
from stagedkd.report.comparison import flops_text
from stagedkd.report.evidence import Evidence
from stagedkd.report.headline import headline, pct
from stagedkd.report.results import Results
from stagedkd.report.templates import template
from stagedkd.spec.schema import Simulated


def model_card(results: Results, card: StudentCard, evidence: Evidence | None = None) -> str:
    """Write the model card of an experiment's student."""
    section = results.plan.spec.data
    simulated = isinstance(section, Simulated)
    path = "" if simulated else str(getattr(section, "path", ""))
    compute = results.student.train_flops
    assistants = ", ".join(each.arch for each in results.assistants)
    values = {
        "data": f"{section.kind}, simulated" if simulated else path or section.kind,
        "kind": section.kind,
        "headline": " ".join(headline(results, evidence)),
        "rate": _rate(card),
        "clips": results.data["clips"].get(results.split, 0),
        "choice": _choice(results),
        "through": f" by way of {assistants}" if assistants else "",
        "compute": "" if compute is None else f" That took {flops_text(compute)} of training compute.",
    }
    page = template("model_card.md.j2", plain=True).render(r=results, card=card, text=_text, pct=pct, **values)
    return page.rstrip() + "\n"


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


def _text(value: object) -> str:
    """A value as YAML that no character can break."""
    return json.dumps(str(value), ensure_ascii=False)
