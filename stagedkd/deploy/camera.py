"""What a student says of a camera, second by second, by PyAV."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch and PyAV are incomplete.
from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import cast

import av
import numpy as np
import torch
from av.error import FFmpegError

from stagedkd.data.views import Video, apply_views, eval_views
from stagedkd.deploy.student import Prediction, Student
from stagedkd.deploy.videos import Frames, own_length, scaled_frame
from stagedkd.errors import UsageError

_INPUTS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
ASSUMED_STEP = 1 / 30  # seconds between two frames, until two were seen
MOST_SECONDS = 60.0  # of frames that are kept


def camera_frames(number: int) -> Generator[tuple[float, Frames]]:
    """Yield the frames of a camera, uint8 (H, W, 3) RGB, each with the time in seconds when it came.

    Raises:
        UsageError: there is no such camera, or this system has no way to it.
    """
    if sys.platform not in _INPUTS:
        raise UsageError(f"cameras are not supported on {sys.platform}", hint="record a video, and predict that")
    form, place = _INPUTS[sys.platform]
    options = {"framerate": "30"} if sys.platform == "darwin" else {}
    try:
        container = av.open(place.format(number), format=form, options=options)
    except (FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"camera {number} ({place.format(number)}) cannot be opened: {reason}"
        raise UsageError(message, hint="name another one by --camera, or close what uses it") from None
    with container:
        for frame in container.decode(video=0):
            yield time.monotonic(), cast("Frames", frame.to_ndarray(format="rgb24"))


def watch(student: Student, frames: Iterable[tuple[float, Frames]], every: float) -> Iterator[Prediction]:
    """Predict the class of the last frames of a stream every so many seconds, from the first whole clip on.

    Times are those of the stream, from its first frame. Frames that come while the student computes wait in the
    camera's own queue, so a slow machine falls behind; a larger `every` helps.
    """
    clip, kept = student.card.clip, deque[tuple[float, Frames]]()
    beginning, due = None, 0.0
    for moment, picture in frames:
        beginning = moment if beginning is None else beginning
        kept.append((moment - beginning, scaled_frame(picture, clip.shorter_side)))
        step = (kept[-1][0] - kept[0][0]) / max(1, len(kept) - 1) or ASSUMED_STEP
        seconds = min(MOST_SECONDS, own_length(clip, step) or max(every, 1.0))
        while len(kept) > 1 and kept[-1][0] + step - kept[1][0] >= seconds:
            kept.popleft()
        whole = kept[-1][0] + step - kept[0][0] >= seconds - step / 2
        if kept[-1][0] < due or not whole:
            continue
        due = kept[-1][0] + every
        times = np.array([at for at, _ in kept])
        pictures = np.stack([frame for _, frame in kept])
        count, height, width, _ = pictures.shape
        (view,) = eval_views(clip, 1, 1, Video(count, height, width, times))
        chosen = torch.from_numpy(pictures[view.frames]).permute(0, 3, 1, 2)
        views_V3THW = apply_views([chosen], [view], clip.size)
        yield Prediction(
            student.classes,
            student.probabilities(student.fitted(views_V3THW)),
            float(times[0]),
            float(times[-1] + step),
        )
