"""Progress of a run on the terminal, with plain lines instead of live ones where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from stagedkd.plan.graph import Stage
from stagedkd.plan.key import NO_KEY, Key
from stagedkd.stages.context import Beside, Listener
from stagedkd.store.maintenance import age_text


class WholeRun:
    """What is left of a run. `seconds` are what each stage that the store lacked was expected to take. Stages that run
    or have ended correct what is expected of the others."""

    def __init__(self, seconds: Mapping[Key, float]) -> None:
        self.count = len(seconds)
        self.expected = dict(seconds)  # of the stages that have not ended
        self.begun: dict[Key, float] = {}
        self.left: dict[Key, float] = {}  # seconds, as running stages report them
        self.ended, self.took = 0.0, 0.0  # seconds of the stages that have ended, expected and true

    def begin(self, key: Key) -> None:
        """A stage begins."""
        self.begun[key] = time.monotonic()

    def end(self, key: Key, seconds: float | None = None) -> None:
        """A stage has ended, after so many seconds; None: it says nothing of the others."""
        self.begun.pop(key, None)
        self.left.pop(key, None)
        if (expected := self.expected.pop(key, 0.0)) > 0 and seconds is not None:
            self.ended, self.took = self.ended + expected, self.took + seconds

    def seconds(self, now: float) -> float:
        """The seconds that are left; stages that run side by side share them."""
        elapsed = {key: now - begun for key, begun in self.begun.items()}
        known = [key for key in self.left if self.expected.get(key, 0.0) > 0]
        expected = self.ended + sum(self.expected[key] for key in known)
        took = self.took + sum(elapsed[key] + self.left[key] for key in known)
        scale = took / expected if expected else 1.0
        left = {
            key: self.left.get(key, max(0.0, scale * seconds - elapsed.get(key, 0.0)))
            for key, seconds in self.expected.items()
        }
        return max(sum(left.values()) / max(1, len(elapsed)), *(left.get(key, 0.0) for key in elapsed), 0.0)

    @property
    def text(self) -> str:
        """The stages that have not ended, and the time until the last one has, in words."""
        count = len(self.expected)
        seconds = self.seconds(time.monotonic())
        about = f", about {age_text(seconds)}" if seconds >= 1 else ""
        return f"{count} {'stage' if count == 1 else 'stages'} left{about}"


@dataclass
class _Line:
    """What is shown of the stage with this identity, or of work before the first one. `beside`: other stages run at the
    same time."""

    heading: str = ""
    identity: Key = NO_KEY
    task: TaskID | None = None
    beside: bool = False
    epoch: tuple[str, int] = ("", 0)
    printed_at: float = 0.0
    counting: tuple[str, float, int] = ("", 0.0, 0)  # of what, since when, and how many were done then


class RunProgress:
    """Shows the progress of a run: a live line for each running stage on a terminal, plain lines elsewhere. `level` is
    -1 for quiet, 1 for verbose."""

    def __init__(self, console: Console, level: int) -> None:
        self.console, self.level = console, level
        self.live = console.is_terminal and level >= 0
        bar = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
        self.progress = Progress(*bar, console=console, transient=True, disable=not self.live)
        self.line = _Line()
        self.whole, self.whole_task = WholeRun({}), TaskID(-1)
        self.lines: dict[str, _Line] = {}  # by identity, since several stages may run at once

    def __enter__(self) -> RunProgress:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def expect(self, seconds: Mapping[Key, float]) -> None:
        """Show from now on what is left of the whole run, whose stages are expected to take so long."""
        self.whole = WholeRun(seconds)
        self.whole_task = self.progress.add_task("whole run", total=self.whole.count, text=self.whole.text)

    def cell(self, number: int, of: int, name: str) -> None:
        self._print(f"cell {number}/{of}: {name}")

    def beside(self, stage: Stage, label: str) -> Listener:
        self.lines[stage.identity] = _Line(label, stage.identity, beside=True)
        return _StageProgress(self, stage, label)

    def stage(self, number: int, of: int, stage: Stage, state: str) -> None:
        line = self.lines.get(stage.identity)
        if line is None or not line.beside:
            self._close(self.line)
            self.line = line = self.lines[stage.identity] = _Line(f"[{number}/{of}] {stage.name}", stage.identity)
        if state == "hit":
            self.whole.end(stage.identity)
            self._print(f"{line.heading}: in the store", level=1)
            return
        self.whole.begin(stage.identity)
        left = f"; {self.whole.text}" if self.whole.count and not self.live else ""
        self._print(f"{line.heading}: {'resuming' if state == 'resumable' else 'running'} ({stage.folder}){left}", line)
        line.task = self.progress.add_task(line.heading.replace("[", "\\["), total=1.0, text="")

    def note(self, text: str) -> None:
        self._print(f"note: {text}")

    def count(self, what: str, done: int, of: int, stage: Stage | None = None) -> None:
        line = self.lines[stage.identity] if stage else self.line
        if line.counting[0] != what or done <= line.counting[2]:
            line.counting = (what, time.monotonic(), done - 1)
            if line.task is None:
                line.task = self.progress.add_task(what, total=1.0, text="")
        _, since, first = line.counting
        left = (time.monotonic() - since) / max(1, done - first) * (of - done)
        self._move(line, done / max(1, of), f"{done} of {of} {what}" + (f"  ETA {left:.0f} s" if done < of else ""))
        if not self.live and (
            (done == of and what.endswith("decoded")) or time.monotonic() - max(line.printed_at, since) > 10
        ):
            self._print(f"{line.heading}{': ' * bool(line.heading)}{done} of {of} {what}, ETA {left:.0f} s", line)

    def step(self, fields: Mapping[str, Any], stage: Stage | None = None) -> None:
        line = self.lines[stage.identity] if stage else self.line
        left = fields["seconds"] * (1 - fields["done"]) / max(fields["done"], 1e-9)
        losses = " ".join(f"{name} {value:.3g}" for name, value in fields["losses"].items() if name != "total")
        position = f"{fields['phase']} {fields['epoch']}/{fields['epochs']}"
        top1 = fields.get("top1")
        measured = "" if top1 is None else f"val {100 * top1:.1f}%  "
        text = f"{position}  {losses}  {measured}{fields['clips_per_s']:.0f} clips/s  ETA {left:.0f} s"
        self._move(line, fields["done"], text)
        self.whole.left[line.identity] = left
        self._move_whole()
        epoch = (fields["phase"], fields["epoch"])
        if epoch != line.epoch and not self.live and (time.monotonic() - line.printed_at > 5 or self.level > 0):
            self._print(f"{line.heading}: {text}", line)
        line.epoch = epoch

    def finished(self, stage: Stage, seconds: float) -> None:
        line = self.lines.get(stage.identity, _Line(stage.name))
        self._close(line)
        self.whole.end(stage.identity, seconds)
        self._move_whole()
        self._print(f"{line.heading}: done in {seconds:.1f} s")

    def failed(self, stage: Stage, message: str) -> None:
        line = self.lines.get(stage.identity, _Line(stage.name))
        self._close(line)
        self.whole.end(stage.identity)
        self._print(f"{line.heading}: failed: {message}")

    def _close(self, line: _Line) -> None:
        if line.task is not None:
            self.progress.remove_task(line.task)
            line.task = None

    def _move(self, line: _Line, fraction: float, text: str) -> None:
        if self.live and line.task is not None:
            self.progress.update(line.task, completed=fraction, text=text)

    def _move_whole(self) -> None:
        if self.live and self.whole.count:
            done = self.whole.count - len(self.whole.expected)
            self.progress.update(self.whole_task, completed=done, text=self.whole.text)

    def _print(self, text: str, line: _Line | None = None, level: int = 0) -> None:
        if self.level >= level:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            (line or self.line).printed_at = time.monotonic()


class _StageProgress(Beside):
    """Shows the progress of one of several stages that run at once."""

    def __init__(self, progress: RunProgress, stage: Stage, label: str) -> None:
        super().__init__(progress, label)
        self.progress, self.of = progress, stage

    def step(self, fields: Mapping[str, Any]) -> None:
        self.progress.step(fields, self.of)

    def count(self, what: str, done: int, of: int) -> None:
        self.progress.count(what, done, of, self.of)
