"""The beginning of a phase of int8: the student gets quantisers, and their ranges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from stagedkd.data.draws import Stream, permutation
from stagedkd.data.views import fit_input
from stagedkd.models.network import Network
from stagedkd.models.quantise import calibrate, quantise
from stagedkd.train.job import Job

CLIPS, BATCH = 128, 32


def insert_quantisers(job: Job) -> None:
    """Put quantisers into the student, whose ranges a checkpoint has."""
    quantise(job.student, next(_clips(job)))


def begin_int8(job: Job, averaged: Network | None) -> None:
    """Put quantisers into the student, with the ranges of up to 128 training clips in their plain view. All ranks use
    the same clips, and the first one's ranges.

    Args:
        averaged: the averaged weights, if they are the result of the phase before: the student goes on from them.
    """
    if averaged is not None:
        job.student.load_state_dict(averaged.state_dict())
    insert_quantisers(job)
    calibrate(job.student, _clips(job))
    job.execution.ranks.broadcast_states(job.student)


def _clips(job: Job) -> Iterator[Tensor]:
    """Batches of the student's input."""
    feed = job.feed
    chosen = feed.clip_ids[np.sort(permutation(len(feed.clip_ids), 0, Stream.PROBE)[:CLIPS])].tolist()
    for start in range(0, len(chosen), BATCH):
        (view_B3THW,) = feed.source.views(chosen[start : start + BATCH], 1, 1)
        yield fit_input(view_B3THW, job.input)
