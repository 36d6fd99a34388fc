"""Export a student: write it, load it again in its own runtime, compare it on clips, and keep what was found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.deploy.clips import CheckClips, check_clips
from stagedkd.deploy.export.coreml import CoreMl
from stagedkd.deploy.export.graph import FramesToLogits
from stagedkd.deploy.export.onnx import Onnx
from stagedkd.deploy.export.openvino import OpenVino
from stagedkd.deploy.export.pt2 import Pt2
from stagedkd.deploy.export.python import Python
from stagedkd.deploy.export.runtimes import Form, Operators, Order, Run, foreign_errors, require
from stagedkd.deploy.student import Found
from stagedkd.errors import TrainingError, UsageError
from stagedkd.files import write_whole
from stagedkd.models.network import Network
from stagedkd.plan.runtime import Runtime
from stagedkd.report.card import CARD
from stagedkd.report.statistics import wilson

FORMS: Mapping[str, type[Form]] = {form.name: form for form in (Onnx, OpenVino, Pt2, CoreMl, Python)}
CHECKED, CALIBRATED, BATCH = 256, 128, 8  # clips
REPORT, README = "export.json", "README.md"
OTHER_FORM = "try --batch 1, or another form"
TOLERANCE = 1e-3  # the largest difference of a float32 logit
AGREEMENT = 0.9  # the least share of clips on which int8 names the class of float32


@dataclass(frozen=True)
class Accuracy:
    """The top-1 of a network on `clips` clips with its 95% interval (Wilson), in 0..1."""

    top1: float
    interval: tuple[float, float]
    clips: int


@dataclass(frozen=True)
class Comparison:
    """An export beside torch's network, on the same clips.

    Attributes:
        clips: which clips, in words.
        difference: the largest difference of a logit. agreement: the share of clips with the same class.
        float32, own: the accuracies of torch's network and of the export; None for clips without labels.
    """

    clips: str
    difference: float
    agreement: float
    float32: Accuracy | None
    own: Accuracy | None


@dataclass(frozen=True)
class Export:
    """What was written and found.

    Attributes:
        form, int8, batch: what was asked for; a batch of None is any.
        folder, bytes: where it is, and the size of its files without the card.
        compared: with torch; None if the export does not run on this machine.
        operators: of int8. versions: of the packages.
    """

    form: str
    int8: bool
    batch: int | None
    folder: str
    bytes: int
    compared: Comparison | None
    operators: Operators
    versions: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        values["operators"] = {kind: dict(counts) for kind, counts in asdict(self.operators).items()}
        return values


@dataclass(frozen=True)
class Wish:
    """What a user asks for. `tolerance` bounds the difference of float32 logits, `agreement` that of int8 classes."""

    form: str
    int8: bool = False
    batch: int | None = None
    tolerance: float = TOLERANCE
    agreement: float = AGREEMENT


def export_student(found: Found, wish: Wish, out: Path, runtime: Runtime, note: Callable[[str], None]) -> Export:
    """Export a student into the folder `out`, which is replaced if it holds an earlier export.

    Raises:
        UsageError: the form is unknown, a package is missing, int8 has no clips to be calibrated by, or `out` holds
            something else.
        TrainingError: the network cannot be taken, or the export differs too much; nothing is written then.
    """
    if wish.form not in FORMS:
        raise UsageError(f"--to {wish.form} is unknown", hint=f"choose one of {', '.join(FORMS)}")
    form, trained = FORMS[wish.form], found.card.quantised is not None
    if trained and form.int8 and not wish.int8:
        note("the student was trained for int8, so the export computes in int8")
        wish = replace(wish, int8=True)
    versions = require(form, int8=wish.int8) | (require(Onnx, int8=True) if trained and form is OpenVino else {})
    if out.exists() and not (out / REPORT).is_file() and any(out.iterdir() if out.is_dir() else [out]):
        raise UsageError(f"{out} exists and is no earlier export", hint="name another folder with --out")
    clips = check_clips(found, runtime, CHECKED, CALIBRATED if wish.int8 and not trained else 0)
    if wish.int8 and not trained and not clips.calibration:
        hint = "run it in the project, where the store and the videos are; --store and --data-dir name them"
        raise UsageError(f"--int8 needs training clips to find its ranges: {clips.why}", hint=hint)
    if clips.why:
        note(f"it is compared on rendered clips, since {clips.why}")
    calibration = [clips.frames([clip]) for clip in clips.calibration]
    order = Order(found.card, found.new_network, wish.batch, calibration)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name:
        folder = Path(name) / "export"
        folder.mkdir()
        with foreign_errors(f"{wish.form} cannot take this network", OTHER_FORM):
            operators = form().write(order, folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != CARD)
        with foreign_errors(f"{wish.form} cannot run what was written, so nothing is kept", OTHER_FORM):
            run = form().load(folder, runtime.used_threads)
            compared = _compare(found.new_network(), run, clips, order) if run else None
        if compared is None:
            note(f"{wish.form} does not run on this machine, so the export was not compared")
        made = Export(wish.form, wish.int8, wish.batch, str(out), size, compared, operators, versions)
        _require_close(made, wish)
        write_whole(folder / CARD, found.card.text)
        write_whole(folder / README, _readme(found, made))
        write_whole(folder / REPORT, json.dumps(made.as_json(), indent=1) + "\n")
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    return made


def _compare(network: Network, run: Run, clips: CheckClips, order: Order) -> Comparison:
    """Run torch's network and the export on the clips."""
    module, batch = FramesToLogits(network.eval(), order.card).eval(), order.batch or BATCH
    ours: list[npt.NDArray[np.float32]] = []
    theirs: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(clips.checked), batch):
        ids = list(clips.checked[start : start + batch])
        frames = clips.frames([*ids, *ids[-1:] * (batch - len(ids))] if order.batch else ids)
        with torch.inference_mode():
            ours.append(module(torch.from_numpy(frames)).numpy()[: len(ids)])
        theirs.append(run(frames)[: len(ids)])
    torch_logits, logits = np.concatenate(ours), np.concatenate(theirs)
    kinds = {"validation": "validation clips", "rendered": "rendered clips"}
    return Comparison(
        clips=f"{len(logits)} {kinds[clips.kind]}",
        difference=float(np.abs(logits - torch_logits).max()),
        agreement=float((logits.argmax(1) == torch_logits.argmax(1)).mean()),
        float32=_accuracy(torch_logits, clips),
        own=_accuracy(logits, clips),
    )


def _accuracy(logits: npt.NDArray[np.float32], clips: CheckClips) -> Accuracy | None:
    if clips.labels is None:
        return None
    right = int((logits.argmax(1) == clips.labels).sum())
    return Accuracy(right / len(logits), wilson(right, len(logits)), len(logits))


def _require_close(made: Export, wish: Wish) -> None:
    """Raise TrainingError if an export differs too much from torch's network."""
    found = made.compared
    if found is None:
        return
    if made.int8 and found.agreement < wish.agreement:
        share = f"{found.agreement:.1%} of {found.clips}, below {wish.agreement:.0%}"
        message = f"int8 names the class of float32 on {share}"
        raise TrainingError(f"{message}: nothing was written", hint="export without --int8, or lower --agreement")
    if not made.int8 and not found.difference <= wish.tolerance:
        message = f"{made.form} differs from torch by up to {found.difference:.2g} in a logit, on {found.clips}"
        raise TrainingError(f"{message}: nothing was written", hint=f"raise --tolerance above {wish.tolerance:g}")


def _readme(found: Found, made: Export) -> str:
    """The model card of the student, with a section on this export. An artifact of the store has no card."""
    card = found.weights.path.parent / README
    text = card.read_text("utf-8") if card.is_file() else f"# {found.card.name}\n"
    lines = ["", f"## This export: {made.form}{', int8' if made.int8 else ''}", "", FORMS[made.form].how]
    if compared := made.compared:
        words = f"Compared with torch on {compared.clips}: logits differ by up to {compared.difference:.2g}"
        lines.append(f"{words}, and {compared.agreement:.1%} have the same class.")
    return text.rstrip() + "\n" + "\n".join(lines) + "\n"
