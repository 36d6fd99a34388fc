"""Predict many videos with a student: files, folders and lists, whole or in windows; as a table, JSON, CSV or
subtitles."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stagedkd.data.layouts.walk import VIDEO_SUFFIXES, walk
from stagedkd.deploy.student import Prediction, Student
from stagedkd.errors import DataError, UsageError

LIST_SUFFIXES = (".txt", ".csv", ".tsv")


@dataclass(frozen=True)
class Answer:
    """What is said of a video, or of a window of it; or why it cannot be read."""

    video: str
    prediction: Prediction | None
    problem: str = ""

    def as_json(self, count: int) -> dict[str, Any]:
        """Plain values, with the `count` likeliest classes."""
        row: dict[str, Any] = {"video": self.video}
        if self.prediction is None:
            return row | {"problem": self.problem}
        if self.prediction.start is not None:
            row |= {"start": round(self.prediction.start, 3), "end": round(self.prediction.end or 0.0, 3)}
        return row | {"classes": [{"class": name, "probability": p} for name, p in self.prediction.top(count)]}


def find_videos(paths: Sequence[str]) -> list[str]:
    """Find the videos that files, folders (with all folders below) and lists of paths name, in order, each once, as
    addresses (data/address.py): numbered pictures count as a video.

    A list is a .txt, .csv or .tsv file with a path at the beginning of each line, relative to the list or to the
    working folder; a first line that names no file is a header.

    Raises:
        UsageError: a folder or a list names no video, or cannot be read.
    """
    videos: dict[str, None] = {}
    for text in paths:
        path = Path(text)
        if path.is_dir():
            below = walk(path)
            found = sorted([*below.videos, *(run.address for run in below.pictures)])
            listed = [str(path / each) for each in found]
        elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
            listed = list(_listed(path))
        else:
            listed = [text]
        if not listed:
            raise UsageError(
                f"{path} names no video", hint="give videos, a folder with videos, or a list of their paths"
            )
        videos |= dict.fromkeys(listed)
    return list(videos)


def _listed(path: Path) -> Iterator[str]:
    """The paths in a list. Raises UsageError: it is no text."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is no list of videos: {error}", hint="give a text file with a path in a line"
        ) from None
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    first = True
    for line in lines:
        text = next(csv.reader([line], delimiter=delimiter))[0] if delimiter and line.strip() else line
        name = text.strip()
        if not name or name.startswith("#"):
            continue
        beside = path.parent / name
        found = beside if beside.exists() or not Path(name).exists() else Path(name)
        if not first or found.exists() or Path(name).suffix.lower() in VIDEO_SUFFIXES:
            yield str(found)
        first = False


def answers(
    student: Student,
    videos: Iterable[str],
    clips: int | None = None,
    crops: Literal[1, 3] | None = None,
    every: float | None = None,
    length: float | None = None,
) -> Iterator[Answer]:
    """Predict videos one by one; a bad file is an answer with a problem, and the rest goes on.

    Args:
        clips, crops: views of a whole video; None: as in the evaluation.
        every, length: seconds between the windows of a video, and of one; None: whole videos.
    """
    for video in videos:
        try:
            if every is None:
                yield Answer(video, student.predict(video, clips, crops))
            else:
                for prediction in student.predict_windows(video, every, length):
                    yield Answer(video, prediction)
        except DataError as error:
            yield Answer(video, None, error.message)


def as_csv(rows: Iterable[Answer], classes: Sequence[str]) -> str:
    """A line for each answer: the video, the window, the class, and the probability of every class."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video", "start", "end", "class", "problem", *classes])
    for row in rows:
        if row.prediction is None:
            table.writerow([row.video, "", "", "", row.problem, *("" for _ in classes)])
            continue
        start, end = row.prediction.start, row.prediction.end
        window = ["", ""] if start is None or end is None else [f"{start:.3f}", f"{end:.3f}"]
        chances = [f"{p:.6g}" for p in row.prediction.probabilities_N.tolist()]
        table.writerow([row.video, *window, row.prediction.top(1)[0][0], "", *chances])
    return text.getvalue()


def as_json_text(rows: Iterable[Answer], count: int) -> str:
    """A list of the answers, with their `count` likeliest classes."""
    return json.dumps([row.as_json(count) for row in rows], indent=1, ensure_ascii=False) + "\n"


def as_subtitles(rows: Iterable[Answer]) -> str:
    """The windows of one video as SubRip subtitles: the likeliest class and its probability. Windows that follow one
    another with one class are one subtitle, with the mean of their probabilities."""
    runs: list[tuple[float, float, str, list[float]]] = []
    predictions = [row.prediction for row in rows if row.prediction is not None]
    for number, prediction in enumerate(predictions):
        assert prediction.start is not None and prediction.end is not None
        name, chance = prediction.top(1)[0]
        following = predictions[number + 1].start if number + 1 < len(predictions) else None
        end = prediction.end if following is None else following
        if runs and runs[-1][2] == name and abs(runs[-1][1] - prediction.start) < 1e-6:
            runs[-1] = (runs[-1][0], end, name, [*runs[-1][3], chance])
        else:
            runs.append((prediction.start, end, name, [chance]))
    parts = [
        f"{i}\n{_clock(start)} --> {_clock(end)}\n{name} ({100 * sum(chances) / len(chances):.0f}%)\n"
        for i, (start, end, name, chances) in enumerate(runs, 1)
    ]
    return "\n".join(parts)


def _clock(seconds: float) -> str:
    """A time as SubRip writes it, such as 00:01:02,500."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"


def seconds_of(text: str) -> float:
    """Read a time such as `1s`, `0.5` or `500ms`, in seconds. Raises UsageError: it is none."""
    number, factor = text.strip().lower(), 1.0
    if number.endswith("ms"):
        number, factor = number[:-2], 1e-3
    elif number.endswith("s"):
        number = number[:-1]
    try:
        seconds = float(number) * factor
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 86_400:
        raise UsageError(f"'{text}' is no time", hint="write seconds, such as 1s or 0.5")
    return seconds
