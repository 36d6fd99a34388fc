"""The attack of benchmarks/torture.py on the user's files: own code or weights are exchanged while a run works."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from safetensors.numpy import load_file, save_file
from torture_runs import NET, PARAMS, RUN, Process, Verdict, command, files_of, finish, remains

SPEC = """\
data: {kind: shapes, classes: 2, train: 16, val: 8, test: 8}
clip: {frames: 4, size: 16}
labels: {clean: 0.5}
train: {batch: 4, lr: 1e-2, warmup_epochs: 0}
teacher:
  arch: file
  path: nets/teacher.py
  args: {width: 8}
  params: 2000
  substages: [[stem], [mid]]
  weights: nets/t.safetensors
  epochs: 2
student: {arch: file, path: nets/own.py, params: 1000, substages: [[stem], [mid]]}
distill: {phases: {joint: {epochs: 6, losses: {ce: 0.1, kd: 0.9, file: {path: nets/loss.py, weight: 0.1}}}}}
"""
LOSS = "def loss(student, teacher):\n    return (student - teacher).square().mean() * SCALE\n"
WEIGHTS = "nets/t.safetensors"
MODES = {"ranks": ("--gpus", "2"), "parsl": ("--engine", "parsl"), "jobs": ("--jobs", "2")}


def versions() -> dict[str, tuple[str, str]]:
    """Both versions of each file of code."""
    return {
        "nets/own.py": (NET, NET.replace("drop=0.3", "drop=0.5")),
        "nets/teacher.py": (NET, NET.replace("nn.ReLU())", "nn.Tanh())")),
        "nets/loss.py": (LOSS.replace("SCALE", "1.0"), LOSS.replace("SCALE", "3.0")),
    }


class Exchange:
    """One file of the user is exchanged at a random time of a run, half of the times put back. Every artifact must be
    that of a run which nobody disturbed and whose key it has, or an error names the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = folder / "first.safetensors"
        self.known: dict[str, dict[str, bytes]] = {}  # mode -> the files of all artifacts that are right, by name
        self.seconds: dict[str, float] = {}

    def trial(self, number: int, dice: random.Random) -> list[Verdict]:
        """Exchange one file in a run with ranks, with Parsl's workers, or with jobs."""
        mode, name = list(MODES)[number % 3], dice.choice([*versions(), WEIGHTS])
        if mode not in self.known:
            self._refer(mode)
        project = self.folder / f"trial-{number}"
        self._make(project)
        when, back = dice.uniform(0.1, 0.95) * self.seconds[mode], dice.random() < 0.5
        process = Process(project, command(*RUN, *MODES[mode]))
        time.sleep(when)
        self._put(project, name, 1)
        if back:
            time.sleep(dice.uniform(0.0, 0.3) * self.seconds[mode])
            self._put(project, name, 0)
        said = process.end()
        text = f"{mode}: {name} exchanged after {when:.1f} s{', put back' if back else ''}"
        fault = said.fault or process.left_over() or self._strange(mode, project) or remains_of(said.code, project)
        if not fault and said.code and Path(name).name not in said.text:
            fault = f"the error does not name {name}: {said.text[-500:]}"
        shutil.rmtree(project)
        if fault:
            return [Verdict("wrong", f"{text}: {fault}")]
        return [Verdict("named" if said.code else "right", text)]

    def _refer(self, mode: str) -> None:
        """Run undisturbed with the first version of all files, then with the second one of each."""
        self.known[mode] = {}
        for name in (None, *versions(), WEIGHTS):
            project = self.folder / "reference"
            self._make(project)
            if name is not None:
                self._put(project, name, 1)
            started = time.monotonic()
            said = finish(project, command(*RUN, *MODES[mode]))
            if said.code:
                raise RuntimeError(f"the run without an attack fails: {said.text}")
            self.seconds.setdefault(mode, time.monotonic() - started)
            self.known[mode] |= files_of(project / "store")
            shutil.rmtree(project)

    def _make(self, project: Path) -> None:
        """Make a project with the first version of all files."""
        (project / "nets").mkdir(parents=True)
        (project / "specs").mkdir()
        (project / "specs" / "tiny.yaml").write_text(SPEC, "utf-8")
        (project / "params.yaml").write_text(PARAMS, "utf-8")
        for name in (*versions(), WEIGHTS):
            self._put(project, name, 0)

    def _put(self, project: Path, name: str, version: int) -> None:
        """Put a version of a file in its place, by a rename or by writing into it."""
        if name != WEIGHTS:
            (project / name).write_text(versions()[name][version], "utf-8")
            return
        if not self.first.exists():
            self._make_weights()
        temporary = project / "nets" / "new.safetensors"
        shutil.copyfile(self.first if version == 0 else self.first.with_name("second.safetensors"), temporary)
        temporary.replace(project / name)

    def _make_weights(self) -> None:
        import torch
        from safetensors.torch import save_file as save

        from stagedkd.files import FileBytes
        from stagedkd.models.build import user_function

        torch.manual_seed(0)
        build = user_function(FileBytes(self.folder / "net.py", NET.encode()), "build")
        save(build(2, width=8).state_dict(), self.first)
        tensors = {key: tensor * 2 for key, tensor in load_file(self.first).items()}
        save_file(tensors, self.first.with_name("second.safetensors"))

    def _strange(self, mode: str, project: Path) -> str:
        """An artifact that is none of those that are right under its key; "" if there is none."""
        for name, content in files_of(project / "store").items():
            if self.known[mode].get(name) != content:
                return f"{name} {'has other bits' if name in self.known[mode] else 'has an unknown key'}"
        return ""


def remains_of(code: int, project: Path) -> str:
    """What a run that has completed left behind; a failed one may keep its checkpoint."""
    return "" if code else remains(project / "store")
