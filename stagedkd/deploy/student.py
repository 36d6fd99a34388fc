"""Load a student, or any other network that a run has made, and predict with it.

    from stagedkd import load_student

    student = load_student("results/quickstart")
    student.predict("video.mp4").top(3)           # [("clockwise", 0.93), ...]

Shape legend: V views, T frames, H, W pixels, N classes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch and safetensors are incomplete.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors.torch import load
from torch import Tensor

from stagedkd.data.views import fit_input
from stagedkd.deploy.videos import Frames, array_views, video_views, windows
from stagedkd.errors import DataError, StoreError, UsageError
from stagedkd.files import DamagedError, FileBytes
from stagedkd.models.network import Network, channels_last
from stagedkd.plan.work import NetworkWork
from stagedkd.report.card import CARD, WEIGHTS, StudentCard, new_card, read_card
from stagedkd.stages.networks import build_or_refuse, device_of, load_state, network_file
from stagedkd.store.manifest import Manifest
from stagedkd.store.store import MANIFEST, Artifact
from stagedkd.train.evaluate import logits_of


@dataclass(frozen=True)
class Prediction:
    """What a student says of a video, or of a window of it: probabilities (N,), float32, and the window in seconds."""

    classes: tuple[str, ...]
    probabilities_N: npt.NDArray[np.float32]
    start: float | None = None
    end: float | None = None

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, best first. Ties go to the earlier class."""
        order = np.argsort(-self.probabilities_N, kind="stable")[:count]
        return [(self.classes[i], float(self.probabilities_N[i])) for i in order]


class Student:
    """A trained network with what it needs to see a video. `card` says all that its files say; `folder` holds them."""

    def __init__(self, card: StudentCard, network: Network, folder: Path, device: torch.device) -> None:
        self.card, self.network, self.folder, self.device = card, network, folder, device
        network.to(device).eval()
        if device.type != "mps":
            channels_last(network)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self.card.classes

    def preprocess(
        self,
        source: str | Path | Frames,
        clips: int | None = None,
        crops: Literal[1, 3] | None = None,
        rate: float | None = None,
    ) -> Tensor:
        """Turn a video into the network's input, float32 (V, 3, T, H, W), normalised, on the device of the network.

        Args:
            source: a file, or its address (data/address.py), or frames, uint8 (T, H, W, 3) RGB.
            clips, crops: views of it; None: as in the evaluation. rate: of an array, its frames a second.
        Raises:
            DataError: the video cannot be decoded, or the array has another form.
        """
        views = (clips or self.card.views[0], crops or _crops(self.card.views[1]))
        if isinstance(source, np.ndarray):
            views_V3THW = array_views(source, rate, self.card.clip, *views)
        else:
            views_V3THW = video_views(str(source), self.card.clip, *views)
        return self.fitted(views_V3THW)

    def fitted(self, views_V3THW: Tensor) -> Tensor:
        """Turn views in 0..1 into the network's input."""
        return fit_input(views_V3THW.to(self.device), self.card.input)

    def predict(
        self,
        source: str | Path | Frames,
        clips: int | None = None,
        crops: Literal[1, 3] | None = None,
        rate: float | None = None,
    ) -> Prediction:
        """Predict the class of a video: the mean of the softmax over its views, as in the evaluation.

        Args and errors are those of `preprocess`.
        """
        return Prediction(self.classes, self.probabilities(self.preprocess(source, clips, crops, rate)))

    def predict_windows(self, path: str | Path, every: float, length: float | None = None) -> Iterator[Prediction]:
        """Predict the class of each window of a video, which begin `every` seconds; see `videos.windows`."""
        for window in windows(str(path), self.card.clip, every, length):
            yield Prediction(
                self.classes, self.probabilities(self.fitted(window.views_V3THW)), window.start, window.end
            )

    def probabilities(self, input_V3THW: Tensor) -> npt.NDArray[np.float32]:
        """The mean of the softmax over the views of a video, (N,)."""
        with torch.inference_mode():
            rows = [logits_of(self.network, view[None]).float().softmax(1) for view in input_V3THW]
            return torch.stack(rows).mean(0)[0].cpu().numpy()


def _crops(number: int) -> Literal[1, 3]:
    return 3 if number == 3 else 1


@dataclass(frozen=True)
class Found:
    """The files of a network: its card and its weights. `root` is the folder that paths of own code are relative to."""

    card: StudentCard
    weights: FileBytes
    root: Path

    def new_network(self) -> Network:
        """Build the network anew, on the CPU, and load its weights. Raises StoreError: they do not fit the card."""
        network = build_or_refuse(self.card.arch, len(self.card.classes), self.root)
        try:
            load_state(network, load(self.weights.content), self.card.clip.seen(self.card.input))
        except Exception as error:
            message = f"{self.weights.path} does not fit {self.card.arch.arch} with {len(self.card.classes)} classes"
            hint = f"keep {WEIGHTS} and {CARD} of one run together"
            raise StoreError(f"{message}: {str(error).splitlines()[0]}", hint=hint) from error
        return network


def load_student(path: str | Path, device: str = "cpu") -> Student:
    """Load a student.

    Args:
        path: a results folder, the folder of an artifact in the store, or a student.safetensors with its student.json
            beside it. device: `auto`, `cpu`, `cuda` or `mps`.
    Raises:
        UsageError: there is no network at this place, or the machine lacks the device.
        StoreError: the card is missing or of another version, or the weights are not those of the card.
    """
    found = find_student(Path(path))
    return Student(found.card, found.new_network(), found.weights.path.parent, device_of(device))


def find_student(path: Path) -> Found:
    """Find the card and the weights of a network. Raises as `load_student`."""
    if (path / "files" / "manifest.json").is_file():
        return _of_artifact(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        hint = f"give a results folder, a folder of the store, or a {WEIGHTS}"
        if (path / "export.json").is_file():
            hint = "an export is for its own runtime: give the results folder that it was made from"
        raise UsageError(f"{path} holds no {WEIGHTS}" if path.is_dir() else f"{path} does not exist", hint=hint)
    card, weights = read_card(file.parent / CARD), FileBytes.read(file)
    if weights.digest != card.weights:
        message = f"{file} is not the file that {CARD} beside it describes"
        raise StoreError(message, hint=f"keep {WEIGHTS} and {CARD} of one run together")
    return Found(card, weights, project_of(file.parent, card))


def _of_artifact(folder: Path) -> Found:
    """The network of an artifact; the names of its classes are in the store, in the artifact of the data."""
    artifact = read_artifact(folder)
    manifest, work = artifact.manifest, artifact.manifest.work
    if not isinstance(work, NetworkWork) or work.network_file is None:
        hint = "give the folder of a teacher or a student"
        raise UsageError(f"{folder} is the artifact of a {manifest.kind} stage, which makes no network", hint=hint)
    data = manifest.needs["data"]
    classes: list[str] = read_artifact(folder.parent / data.folder(manifest.closure[data].work.kind)).json("data.json")[
        "classes"
    ]
    name = network_file(work)
    weights = FileBytes(folder / "files" / name, artifact.read(name))
    card = new_card(manifest.folder, manifest.key, work, classes, weights.digest)
    return Found(card, weights, project_of(folder, card))


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact by its folder. Raises StoreError: it is missing or damaged."""
    path = folder / "files" / MANIFEST
    try:
        return Artifact(folder, Manifest.parse(path.read_bytes())[0])
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", hint="run: stagedkd store verify") from None
    except (DamagedError, ValidationError) as error:
        raise StoreError(
            f"{path} is damaged: {str(error).splitlines()[0]}", hint="run: stagedkd store verify"
        ) from None


def project_of(folder: Path, card: StudentCard) -> Path:
    """The folder that the paths of the user's own files are relative to: the nearest one above that has them.

    Raises:
        DataError: none has.
    """
    files = card.arch.user_files
    if files is None:
        return folder
    for above in (folder.resolve(), *folder.resolve().parents, Path.cwd()):
        if (above / files.path).exists():
            return above
    message = f"the network is your own code {files.path}, which is in no folder above {folder}"
    raise DataError(message, hint=f"copy {files.path} to the same place beside the student")
