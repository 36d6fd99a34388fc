"""The attacks of benchmarks/torture.py on whole processes: kills, and runs beside runs. Also what all attacks share:
verdicts, a tiny project, and calls of the command line in this process and in others."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import psutil

from stagedkd.errors import StagedkdError

REPO = Path(__file__).resolve().parent.parent
SECONDS = 240.0  # after which a command counts as hanging: a busy machine is no hang
END_SECONDS = 5.0  # from the end of a command until all of its processes must have ended
MARK = "STAGEDKD_TORTURE"  # an environment variable by which the processes of an attack are found
TRACEBACK = "Traceback (most recent call last)"
UNFORESEEN = 70
NET = """\
from torch import nn


def build(classes, width=6, drop=0.3):
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv3d(3, width, 3, (1, 2, 2), 1), nn.GroupNorm(2, width), nn.ReLU()))
    net.add_module("mid", nn.Sequential(nn.Dropout(drop), nn.Conv3d(width, width, 3, 2, 1), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, classes)))
    return net
"""
TINY = """\
data: {kind: shapes, classes: 2, train: 8, val: 8, test: 8}
clip: {frames: 4, size: 16, views: 2}
labels: {clean: 0.5}
train: {batch: 4, lr: 1e-2, warmup_epochs: 0}
teacher: {arch: file, path: nets/own.py, args: {width: 8}, params: 2000, substages: [[stem], [mid]], epochs: 1}
student: {arch: file, path: nets/own.py, params: 1000, substages: [[stem], [mid]]}
distill: {phases: {joint: {epochs: 2, losses: {ce: 0.1, kd: 0.9, sp: 10}}}}
"""
PARAMS = (
    "runtime: {device: cpu, threads: 1, checkpoint_seconds: 0, lease_seconds: 5}\ndvc: {specs: [specs/tiny.yaml]}\n"
)
FORMS = (
    ("avi", "mpeg4"),
    ("mp4", "libx264"),
    ("mkv", "ffv1"),
    ("webm", "libvpx"),
    ("mov", "mjpeg"),
    ("mpg", "mpeg1video"),
    ("ts", "mpeg2video"),
    ("flv", "flv"),
    ("wmv", "wmv2"),
)
RUN = ("run", "specs/tiny.yaml", "--no-dvc", "-q")


@dataclass(frozen=True)
class Verdict:
    """How an attack ended. right: the bits or numbers are those of a run that nobody attacked. named: an error names
    the file or the place. wrong: anything else. `text` says what was attacked, and what came of it."""

    kind: Literal["right", "named", "wrong"]
    text: str = ""


@dataclass(frozen=True)
class Said:
    """How a command ended: its exit code, or minus the signal that ended it, and all that it printed."""

    code: int
    text: str

    @property
    def fault(self) -> str:
        """What no command may do, whatever is done to it; "" if it did not."""
        # a Ctrl-C before Python runs any of our code is Python's own
        if TRACEBACK in self.text and not ("KeyboardInterrupt" in self.text and "/stagedkd/" not in self.text):
            return f"a traceback: {self.text[-700:]}"
        return f"the last-resort exit code: {self.text[-700:]}" if self.code == UNFORESEEN else ""


class HangError(BaseException):
    """The time limit of an attack is over. No handler of exceptions takes it for an error."""


@contextmanager
def limited(seconds: float) -> Generator[None]:
    """Inside, HangError is raised in the main thread after so many seconds of CPU time, as a busy machine gives little
    of it; or after five times as many of the clock, for what waits."""

    def give_up(number: int, frame: Any) -> None:
        raise HangError(f"no end after {seconds:g} s")

    timers = {signal.SIGALRM: (signal.ITIMER_REAL, 5 * seconds), signal.SIGPROF: (signal.ITIMER_PROF, seconds)}
    before = {number: signal.signal(number, give_up) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def guarded(seconds: float, what: str, attack: Callable[[], Verdict]) -> Verdict:
    """Let an attack of this process take no longer than `seconds`; any error that is none of stagedkd's is wrong."""
    try:
        with limited(seconds):
            return attack()
    except StagedkdError as error:
        return Verdict("wrong", f"{what}: {type(error).__name__} without a place: {error.message[:300]}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Verdict("wrong", f"{what}: {type(error).__name__}: {str(error)[:300]}")


def call(folder: Path, *arguments: str) -> Said:
    """Call the command line in this process, which has loaded torch already, with `folder` as the working folder."""
    from stagedkd import cli

    output, before, code = io.StringIO(), sys.argv, 0
    sys.argv = ["stagedkd", *arguments]
    try:
        with limited(SECONDS), chdir(folder), redirect_stdout(output), redirect_stderr(output):
            cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except HangError as error:
        return Said(UNFORESEEN, f"{output.getvalue()}\n{error}")
    finally:
        sys.argv = before
    return Said(code, output.getvalue())


def command(*arguments: str) -> list[str]:
    """The command line as a process of its own, which does not look in the working folder for modules."""
    return [sys.executable, "-P", "-m", "stagedkd", *arguments]


class Process:
    """A command in a session of its own. Its processes are known by a token in their environment."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self.token = os.urandom(8).hex()
        self.output = Path(tempfile.gettempdir()) / f"output-{self.token}"
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", MARK: self.token}
        with self.output.open("wb") as log:
            self.popen = subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_usual_signals,  # a campaign in the background ignores some
            )

    def end(self) -> Said:
        """Wait for the end. A hang ends all of its processes, and is said in the text."""
        try:
            code, hang = self.popen.wait(SECONDS), ""
        except subprocess.TimeoutExpired:
            code, hang = UNFORESEEN, f"\nno end after {SECONDS:g} s"
            self.kill()
        text = self.output.read_text("utf-8", "replace") + hang
        self.output.unlink()
        return Said(code, text)

    def alive(self) -> list[psutil.Process]:
        """All processes of the command that have not ended."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.token:
                    found.append(process)
        return found

    def left_over(self) -> str:
        """What is still alive a few seconds after the end, which is then killed; "" if nothing is."""
        deadline = time.monotonic() + END_SECONDS
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        words = [" ".join(process.cmdline()[-6:]) for process in left if process.is_running()]
        self.kill()
        return f"still alive {END_SECONDS:g} s later: {'; '.join(words)}" if words else ""

    def kill(self) -> None:
        """Kill all processes of the command."""
        for process in self.alive():
            with suppress(psutil.Error):
                process.kill()
        self.popen.wait()


def _usual_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def finish(folder: Path, words: Sequence[str]) -> Said:
    """Run a command as a process to its end."""
    return Process(folder, words).end()


def make_project(folder: Path) -> None:
    """Make the tiny project: a network of its own without BatchNorm, simulated clips, and two trainings."""
    for name, text in (("nets/own.py", NET), ("specs/tiny.yaml", TINY), ("params.yaml", PARAMS)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def files_of(store: Path) -> dict[str, bytes]:
    """The deterministic files of all artifacts of a store."""
    paths = (path for path in store.glob("*/files/**/*") if path.is_file())
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in paths}


def difference(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> str:
    """The first difference between the files of two stores; "" if there is none."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            what = "is missing" if name not in found else "is too many" if name not in expected else "has other bits"
            return f"{name} {what}"
    return ""


def remains(store: Path) -> str:
    """What a completed run left behind; "" if nothing."""
    left = [*store.glob(".work/*"), *store.glob(".trash/*"), *store.glob(".leases/*")]
    left += [path for name in ("stagedkd-*", "torchelastic_*") for path in Path(tempfile.gettempdir()).glob(name)]
    return f"left behind: {left[0]}" if left else ""


@dataclass(frozen=True)
class Mode:
    """A command that is killed. `start`: the project's store is empty or finished, or also has what no spec needs.
    `then`: what completes it. `takes`: its time over that of a run."""

    words: tuple[str, ...]
    start: Literal["empty", "finished", "crowded"] = "empty"
    then: tuple[str, ...] = RUN
    takes: float = 1.0


MODES = {
    "run": Mode(RUN),
    "run --jobs 2": Mode((*RUN, "--jobs", "2"), takes=1.5),
    "run --gpus 2": Mode((*RUN, "--gpus", "2"), then=(*RUN, "--gpus", "2"), takes=3.5),
    "run --engine parsl": Mode((*RUN, "--engine", "parsl"), takes=2.0),
    "rehearse": Mode(("rehearse", "specs/tiny.yaml"), takes=1.3),
    "stage": Mode(("stage", "KEY"), takes=0.7),
    "reproduce": Mode(
        ("reproduce", "results/tiny", "--store", "again"),
        "finished",
        ("reproduce", "results/tiny", "--store", "again"),
    ),
    "store verify": Mode(("store", "verify"), "finished", ("store", "verify"), 0.15),
    "store gc": Mode(("store", "gc", "--yes", "--runs", "0"), "crowded", ("store", "gc", "--yes", "--runs", "0"), 0.15),
    "report": Mode(("report", "specs/tiny.yaml"), "finished", ("report", "specs/tiny.yaml"), 0.4),
}
# Some are attacked more often than others, those that start many processes less.
ORDER = (
    *("run", "stage", "run --jobs 2", "store gc", "run --gpus 2", "reproduce", "rehearse"),
    *("run", "run --engine parsl", "report", "store verify", "run --jobs 2", "run", "stage"),
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Kills:
    """A signal to a command or to one of its processes at a random time; then the command runs to its end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ranked = folder, dict[str, bytes]()
        for start in ("empty", "finished", "crowded"):
            make_project(folder / start)
        started = time.monotonic()
        said = finish(folder / "finished", command(*RUN))
        self.seconds = time.monotonic() - started
        self.reference = files_of(folder / "finished" / "store")
        self.metrics = (folder / "finished" / "results/tiny/metrics.json").read_bytes()
        said = [said, call(folder / "empty", "dvc", "sync", "--no-commit"), call(folder / "crowded", *RUN)]
        said.append(call(folder / "crowded", *RUN, "--set", "seed=1", "--results", "other"))
        if any(each.code for each in said):
            raise RuntimeError(f"the reference failed: {said}")
        if difference({**files_of(folder / "crowded" / "store"), **self.reference}, files_of(folder / "crowded/store")):
            raise RuntimeError("this process and another one give other bits")

    def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
        """Attack one command; the numbers go round."""
        name = ORDER[number % len(ORDER)]
        mode, place = MODES[name], self.folder / "trial"
        shutil.copytree(self.folder / mode.start, place)
        try:
            words = [self._key(place, dice) if word == "KEY" else word for word in mode.words]
            what, said, left = self._attack(place, words, dice.uniform(0, 1.1) * mode.takes * self.seconds, dice)
            wrong = said.fault or left or self._complete(place, mode)
            text = f"{name}: {what}, exit code {said.code}"
            if wrong:
                return [Verdict("wrong", f"{text}: {wrong}")]
            return [Verdict("named" if "error:" in said.text else "right", text)]
        finally:
            shutil.rmtree(place)

    def _key(self, place: Path, dice: random.Random) -> str:
        """Choose a stage of dvc.yaml, and make all stages above it."""
        keys = re.findall(r"stagedkd stage ([0-9a-f]+)", (place / "dvc.yaml").read_text("utf-8"))
        chosen = dice.choice(keys)
        for key in keys:
            if key != chosen:
                call(place, "stage", key, "-q")  # those that need the chosen one are refused
        return chosen

    def _attack(self, place: Path, words: Sequence[str], seconds: float, dice: random.Random) -> tuple[str, Said, str]:
        """Start a command and send the signal. Returns what was done, how the command ended, and what is left over."""
        process = Process(place, command(*words))
        target, number = dice.choice(["command", "command", "command", "child", "child", "all"]), dice.choice(SIGNALS)
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(seconds)
        what = f"{number.name} to {target} after {seconds:.2f} s"
        below = sorted(process.alive(), key=lambda each: each.pid)
        others = [each for each in below if each.pid != process.popen.pid]
        with suppress(ProcessLookupError, psutil.Error):
            if target == "child" and others:
                victim = dice.choice(others)
                what += f" ({' '.join(victim.cmdline()[-4:])[:80]})"
                victim.send_signal(number)
            elif target == "all":
                os.killpg(process.popen.pid, number)
            elif process.popen.poll() is None:
                process.popen.send_signal(number)
        return what, process.end(), process.left_over()

    def _complete(self, place: Path, mode: Mode) -> str:
        """Run to the end, and compare. Returns what is wrong; "" if nothing is."""
        said = call(place, *mode.then)
        if said.code or said.fault:
            return f"it does not go on ({' '.join(mode.then)}): exit code {said.code}: {said.text[-700:]}"
        expected = self.reference
        if "--gpus" in mode.then:
            expected = self.ranked = self.ranked or self._ranked()
        wrong = difference(files_of(place / "store"), expected)
        if "again" in mode.then:
            wrong = wrong or difference(files_of(place / "again"), self.reference)
        if mode.start == "finished" and (place / "results/tiny/metrics.json").read_bytes() != self.metrics:
            wrong = wrong or "metrics.json differs"
        return wrong or remains(place / "store")

    def _ranked(self) -> dict[str, bytes]:
        """The files that two ranks make."""
        place = self.folder / "ranked"
        make_project(place)
        said = call(place, *MODES["run --gpus 2"].words)
        if said.code:
            raise RuntimeError(f"the reference failed: {said}")
        return files_of(place / "store")


def write_video(path: Path, codec: str, frames: int, seed: int) -> None:
    """Write a small video of noise over a ramp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height = 48, 32
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            picture = noise.integers(0, 60, (32, 48, 3), np.uint8) + np.uint8(10 * number + 40 * (seed % 3))
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_set(folder: Path, suffix: str = "avi", codec: str = "mpeg4") -> list[str]:
    """Write twelve small videos of two classes. Returns the rows of their table."""
    rows: list[str] = []
    for number in range(12):
        write_video(folder / f"{number}.{suffix}", codec, 6, number)
        rows.append(f"{number}.{suffix},{'ab'[number % 2]},g{number // 2}")
    return rows


def write_forms(folder: Path) -> None:
    """Write a small video in each container."""
    for number, (suffix, codec) in enumerate(FORMS):
        write_video(folder / f"whole.{suffix}", codec, 8, number)
