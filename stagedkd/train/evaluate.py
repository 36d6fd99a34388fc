"""Predictions of a network, and the figures made of them.

Shape legend: B clips, N classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.data.source import ClipSource
from stagedkd.data.views import fit_input
from stagedkd.models.network import Network
from stagedkd.spec.schema import Input


def predict(
    network: Network,
    source: ClipSource,
    numbers: npt.NDArray[np.int64],
    batch: int,
    clips: int,
    crops: Literal[1, 3],
    made: Input | None,
    progress: Callable[[int, int], None],
) -> npt.NDArray[np.float32]:
    """Class probabilities (len(numbers), N): the mean of the softmax over the views, in fp32. `made` is what the
    network makes of the shared view."""
    network.eval()
    rows: list[npt.NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(numbers), batch):
            views = source.views(numbers[start : start + batch].tolist(), clips, crops)
            scores = torch.stack([network(fit_input(view, made)).float().softmax(1) for view in views]).mean(0)
            rows.append(scores.cpu().numpy())
            progress(min(start + batch, len(numbers)), len(numbers))
    return np.concatenate(rows)


def figures(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """top1, top5 (absent below six classes), per class and ECE, all in 0..1.

    Ties go to the lower class id, in top-5 too.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    right = order[:, 0] == labels
    found: dict[str, Any] = {"clips": len(labels), "top1": float(right.mean())}
    if len(classes) > 5:
        found["top5"] = float((order[:, :5] == labels[:, None]).any(1).mean())
    there = [i for i in range(len(classes)) if (labels == i).any()]
    found["per_class"] = {classes[i]: float(right[labels == i].mean()) for i in there}
    found["ece"] = expected_calibration_error(scores.max(1), right)
    return found


def expected_calibration_error(
    confidence: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """ECE, Guo et al. 2017: mean gap of confidence and accuracy over equal bins, weighted by their clips."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(confidence[place == b].mean()) - float(right[place == b].mean())) * float((place == b).mean())
        for b in range(bins)
        if (place == b).any()
    ]
    return float(sum(gaps))


def latency(network: Network, frames: int, size: int, device: torch.device, repeats: int = 10) -> float:
    """Median seconds of one forward pass of one clip, after two to warm up."""
    clip = torch.zeros(1, 3, frames, size, size, device=device)
    seconds: list[float] = []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            started = time.perf_counter()
            network(clip)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[2:]))
