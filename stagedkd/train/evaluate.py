"""Predictions of a network, and the metrics that are computed from them.

Shape legend: B clips, N classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.source import ClipSource
from stagedkd.data.views import arrange_frames, fit_input
from stagedkd.models.network import Network, at_least_two
from stagedkd.spec.schema import Frames, Input, Size, sides
from stagedkd.train.rehearsal import Rehearsal
from stagedkd.train.spread import BUSY, spread_of

BLOCKS, PASSES = 5, 4  # of a measurement of the latency


def predict(
    network: Network,
    source: ClipSource,
    clip_ids: npt.NDArray[np.int64],
    batch: int,
    clips: int,
    crops: Literal[1, 3],
    network_input: Input | None,
    progress: Callable[[int, int], None],
    rehearsal: Rehearsal | None = None,
    frames: Frames | None = None,
) -> npt.NDArray[np.float32]:
    """Predict class probabilities (len(clip_ids), N): the mean of the softmax over the views, in fp32. A `rehearsal`
    ends after a few batches, and gives the further clips equal probabilities.

    Args:
        batch: clips at once. clips, crops: views of each clip.
        network_input: the input that the network takes from the shared view. progress: called with (done, all) clips.
        frames: the order of the frames, see `arrange_frames`.
    """
    network.eval()
    rows: list[npt.NDArray[np.float32]] = []
    if rehearsal:
        rehearsal.begin_batches(-(-len(clip_ids) // batch))
    with torch.inference_mode():
        for start in range(0, len(clip_ids), batch):
            ids = clip_ids[start : start + batch].tolist()
            views = [arrange_frames(view, ids, frames) for view in source.views(ids, clips, crops)]
            logits = [logits_of(network, fit_input(view, network_input)) for view in views]
            scores = torch.stack([each_BN.float().softmax(1) for each_BN in logits]).mean(0)
            rows.append(scores.cpu().numpy())
            progress(min(start + batch, len(clip_ids)), len(clip_ids))
            if rehearsal and rehearsal.batch():
                break
    found = np.concatenate(rows)
    left = len(clip_ids) - len(found)
    return np.concatenate([found, np.full((left, found.shape[1]), 1 / found.shape[1], np.float32)])


def logits_of(network: Network, clip_BCTHW: Tensor) -> Tensor:
    """Return the logits (B, N) of normalised clips. On the CPU a single clip runs beside itself (`at_least_two`)."""
    return network(at_least_two(clip_BCTHW))[: len(clip_BCTHW)]


def metrics_of(
    scores: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Any]:
    """The metrics top1, top5 (left out below six classes), per_class and ece, all in 0..1, and the number of `clips`.
    Ties go to the lower class id.

    Args:
        scores: class probabilities (n, N). labels: class ids (n,). classes: names in the order of their ids.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    right = order[:, 0] == labels
    metrics: dict[str, Any] = {"clips": len(labels), "top1": float(right.mean())}
    if len(classes) > 5:
        metrics["top5"] = float((order[:, :5] == labels[:, None]).any(1).mean())
    present = [i for i in range(len(classes)) if (labels == i).any()]
    metrics["per_class"] = {classes[i]: float(right[labels == i].mean()) for i in present}
    metrics["ece"] = expected_calibration_error(scores.max(1), right)
    return metrics


def expected_calibration_error(
    confidence: npt.NDArray[np.float32], right: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """ECE, Guo et al. 2017: the mean gap between confidence and accuracy over equal bins, weighted by clips.

    Args:
        confidence: the highest probability of each clip, (n,) in 0..1. right: whether its class is right, (n,).
    """
    bin_n = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(confidence[bin_n == b].mean()) - float(right[bin_n == b].mean())) * float((bin_n == b).mean())
        for b in range(bins)
        if (bin_n == b).any()
    ]
    return float(sum(gaps))


def latency(network: Network, frames: int, size: Size, device: torch.device) -> tuple[float | None, float]:
    """The median time in seconds until the logits of one clip that comes alone, as `predict` runs it, after two passes
    of warm-up. On the CPU that is a pass of two clips. Puts the network into eval mode.

    Returns:
        the time, None if the machine was busy; and the spread of the medians of five blocks of passes, relative to the
        time. Above `BUSY` it says more of the machine than of the network.
    """
    network.eval()
    clip = fit_input(torch.zeros(1, 3, frames, *sides(size), device=device), None)
    seconds: list[float] = []
    with torch.inference_mode():
        for _ in range(2 + BLOCKS * PASSES):
            started = time.perf_counter()
            logits_of(network, clip)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if device.type == "mps":
                torch.mps.synchronize()
            seconds.append(time.perf_counter() - started)
    middle, spread = spread_of(np.array(seconds[2:]).reshape(BLOCKS, PASSES))
    return (middle if spread <= BUSY else None), spread
