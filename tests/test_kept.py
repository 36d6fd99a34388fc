"""Outputs of frozen networks that are kept: the same bits as live ones, and never those of another network."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from stagedkd import load_spec, run
from stagedkd.data.mix import Batch
from stagedkd.experiment.preflight import hop_keepings
from stagedkd.models.network import Network
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.lock import Lock
from stagedkd.plan.runtime import Runtime
from stagedkd.report.phases import phase_lines
from stagedkd.spec.load import load_experiment
from stagedkd.stages import keeping
from stagedkd.train.guides import GuideOutputs, LiveGuide
from stagedkd.train.kept import Kept, KeptRows
from stagedkd.train.maps import Form
from tests.tools import Heard

KILLER = Path(__file__).with_name("killer.py")
STEPS = 5  # of an epoch
BASE = """\
data: {kind: shapes, classes: 4, train: 40, val: 8, test: 8}
clip: {frames: 4, size: 16}
augment: {crop: 1.0, jitter: 0.0, flip: 0}
labels: {clean: 0.5}
train: {batch: 8, lr: 1e-2}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1, 1], substages: [[stem, layer1], [layer2]], epochs: 4}
distill:
  phases:
    grow: {substages: one_by_one, epochs: 1, losses: {gaussian_w2: 1.0}}
    joint: {losses: {kd: 0.9, gaussian_w2: 0.1}}
"""
METHODS: dict[str, list[str]] = {
    "kd": ["distill.phases={$replace: {joint: {losses: {kd: 1.0, ce: 0.1}}}}"],
    "gaussian_w2": [],
    "two views": ["augment.crop=0.8", "augment.jitter=0.2", "clip.views=2"],
    "cells": ["distill.phases.joint.losses={gaussian_w2: {cells: [2, 2, 1]}, gaussian_kl: {samples: frames}}"],
    "over the batch": ["distill.phases.joint.losses={gaussian_w2: {samples: batch}, gaussian_kl: 1}"],
    "hint": ["distill.phases.joint.losses={hint: {weight: 1, scale: teacher_variance}, kd: 1, sliced_w2: 1}"],
    "review": [
        "distill.pairing=review",
        "distill.phases={$replace: {joint: {losses: {ce: 1, review: 1.0, gaussian_w2: 1}}}}",
    ],
    "correlation": [
        "distill.pairing=correlation",
        "distill.phases={$replace: {joint: {losses: {ce: 1, gaussian_w2: 1, rkd: 1}}}}",
    ],
    "mixed": ["distill.pairing=mixed", "distill.phases={$replace: {joint: {losses: {ce: 1, gaussian_w2: 1}}}}"],
    "embedding": [
        "distill.phases={$replace: {joint: {losses: {ce: 1, rkd: {taps: embedding}, hint: {taps: embedding}}}}}"
    ],
    "positions": ["distill.phases={$replace: {joint: {losses: {sdd: 1, stage_cka: 1, crd: 0.1}}}}"],
    "shuffled": ["distill.teacher.shuffle=true"],
    "frozen blocks": ["student.epochs=8", "distill.phases.grow.epochs=3"],
    "head": [
        "distill.phases={$replace: {whole: {epochs: 2, losses: {kd: 1}}, head: {substages: head, losses: {kd: 1}}}}"
    ],
    "co-teachers": [
        "co_teachers=[{arch: resnet3d, width: 4, blocks: [1, 1], labels: all, epochs: 1}]",
        "distill.drop=0.5",
        "distill.phases.joint.train.batch=6",
    ],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose teachers are made once."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "spec.yaml").write_text(BASE, "utf-8")
    return folder


@pytest.fixture(autouse=True)
def _afresh(root: Path) -> Iterator[None]:
    yield
    shutil.rmtree(root / "cache", ignore_errors=True)
    (root / "spec.yaml").write_text(BASE, "utf-8")


class Hop:
    """The hop of a spec, made anew: the student's tensors, what was said, and how often guides ran."""

    def __init__(self, root: Path, sets: Sequence[str] = (), **runtime: Any) -> None:
        for folder in (root / "store").glob("distill-*"):
            shutil.rmtree(folder)
        self.heard, self.forwards = Heard(), 0
        plain = LiveGuide.outputs

        def counting(guide: LiveGuide, batch: Batch, maps: Sequence[str], logits: bool) -> GuideOutputs:
            self.forwards += 1
            return plain(guide, batch, maps, logits)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LiveGuide, "outputs", counting)
            settings = Runtime.model_validate({"root": str(root), "device": "cpu", "threads": 1, **runtime})
            outcome = run(load_spec(root / "spec.yaml", list(sets)), settings, self.heard)
        assert "student" in outcome.ran
        self.tensors = load_tensors(outcome.artifacts["student"].file("student.safetensors"))

    def equals(self, other: Hop) -> bool:
        names = self.tensors.keys()
        return names == other.tensors.keys() and all(torch.equal(self.tensors[n], other.tensors[n]) for n in names)

    @property
    def notes(self) -> str:
        return "\n".join(self.heard.notes)


def files(root: Path) -> list[Path]:
    return sorted((root / "cache" / "kept").glob("*.safetensors"))


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("method", METHODS)
def test_kept_outputs_give_the_bits_of_live_ones(root: Path, method: str) -> None:
    live, kept = Hop(root, METHODS[method], cache_teacher="off"), Hop(root, METHODS[method])
    assert kept.equals(live) and "kept on the disk" in kept.notes and files(root)
    assert kept.forwards < live.forwards, (kept.forwards, live.forwards)


def test_a_different_teacher_gives_other_bits(root: Path) -> None:
    """So the comparisons above can fail."""
    assert not Hop(root).equals(Hop(root, ["teacher.seed=1"]))


def test_after_the_first_epoch_no_guide_runs(root: Path) -> None:
    sets = ["distill.phases={$replace: {joint: {losses: {kd: 1, gaussian_w2: 1}}}}", "student.epochs=6"]
    assert Hop(root, sets, cache_teacher="off").forwards == 6 * STEPS
    kept = Hop(root, sets)
    assert kept.forwards == STEPS + 1  # a rearranged batch
    again = Hop(root, sets)
    assert again.forwards == 1 + 1 and again.equals(kept)  # the first batch, against the file
    assert Hop(root).forwards == 1 + 1
    shutil.rmtree(root / "cache")
    assert Hop(root).forwards == STEPS + 1  # grow runs all that joint needs


def test_each_view_is_filled_once(root: Path) -> None:
    sets = [
        "distill.phases={$replace: {joint: {losses: {kd: 1}}}}",
        "student.epochs=7",
        "clip.views=3",
        "augment.crop=0.7",
    ]
    assert Hop(root, sets).forwards == 3 * STEPS + 1


def test_frozen_blocks_of_the_student_run_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = {"auto": 0, "off": 0}
    plain, mode = Network.block, "off"

    def counting(network: Network, name: str, state: Any) -> Any:
        if name == "layer1" and not network.training and sum(p.requires_grad for p in network.parameters()):
            ran[mode] += 1  # of a student whose first blocks are frozen
        return plain(network, name, state)

    monkeypatch.setattr(Network, "block", counting)
    live = Hop(root, METHODS["frozen blocks"], cache_teacher="off")
    mode = "auto"
    kept = Hop(root, METHODS["frozen blocks"])
    assert kept.equals(live)
    assert ran["off"] - ran["auto"] == 2 * STEPS - 1  # two of three epochs, but for a rearranged batch
    assert "no more epochs than views" in "".join(_plan_lines(root, []))


def _plan_lines(root: Path, sets: Sequence[str], **runtime: Any) -> list[str]:
    plans = compile_experiment(load_experiment(root / "spec.yaml", list(sets)))
    return list(phase_lines(plans, hop_keepings(plans, Runtime.model_validate({"root": str(root), **runtime}))))


# ---------------------------------------------------------------- files


def test_a_cut_file_and_one_of_another_key_are_made_again(root: Path) -> None:
    first = Hop(root)
    cut, other = files(root)[:2]
    sizes = {path: path.stat().st_size for path in files(root)}
    cut.write_bytes(cut.read_bytes()[:-1])
    header = other.read_bytes()
    other.write_bytes(header.replace(other.stem.encode(), b"0" * 32))
    again = Hop(root)
    assert again.equals(first) and again.forwards > 1 + 1  # what was lost is filled again
    assert sizes == {path: path.stat().st_size for path in files(root)}
    assert other.read_bytes() == header


def test_a_damaged_row_is_filled_again(root: Path) -> None:
    first = Hop(root)
    whole = {path: path.read_bytes() for path in files(root)}
    for path, content in whole.items():
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])  # in the row of the last clip
    again = Hop(root)
    assert again.equals(first) and 1 + 1 < again.forwards < first.forwards
    assert whole == {path: path.read_bytes() for path in files(root)}


def test_rows_of_another_network_are_found_out(root: Path) -> None:
    first = Hop(root)
    for path in files(root):
        content = path.read_bytes()
        clips = len(load_file(path)["sums"])
        rows = next(values for name, values in load_file(path).items() if name in ("logits", "map"))
        wrong = KeptRows.in_memory(clips, rows.shape[1:], torch.float32)
        wrong.put(np.arange(clips), torch.from_numpy(rows) * 2)
        path.write_bytes(content[: -rows.nbytes - 4 * clips] + wrong.sums.tobytes() + wrong.values.tobytes())
    again = Hop(root)
    assert again.equals(first) and "the teacher runs in every step: what was kept before differs" in again.notes


def test_another_teacher_other_clips_and_other_views_have_files_of_their_own(root: Path) -> None:
    first = Hop(root)
    known = len(files(root))
    viewed = ["clip.views=2", "augment.crop=0.5"]
    for number, sets in enumerate((["teacher.seed=1"], ["student.sees=32"], viewed, ["train.batch=5"]), 2):
        hop = Hop(root, sets)
        assert len(files(root)) == number * known and hop.forwards > 1 + 1
    assert Hop(root).equals(first) and len(files(root)) == 5 * known


def test_a_second_cell_reads_the_files_of_the_first(root: Path) -> None:
    first = Hop(root)
    known = files(root)
    second = Hop(root, ["distill.phases.joint.losses.kd=0.5", "train.lr=3e-3", "teacher.train.lr=1e-2"])
    assert files(root) == known and second.forwards == 1 + 1 < first.forwards


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 7])
def test_a_kill_while_filling_goes_on_to_the_same_bits(root: Path, step: int) -> None:
    sets = [f"--set={each}" for each in METHODS["two views"]]
    (root / "params.yaml").write_text("runtime: {device: cpu, threads: 1, checkpoint_seconds: 0}\n", "utf-8")
    whole = Hop(root, METHODS["two views"])
    for folder in [*(root / "store").glob("distill-*"), root / "cache"]:
        shutil.rmtree(folder)
    command = [sys.executable, str(KILLER), "step", str(step), "run", "spec.yaml", *sets]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == -signal.SIGKILL, found.stderr
    sums = [load_file(path)["sums"] for path in files(root)]
    assert sums and all(0 < (each != 0).sum() < len(each) for each in sums)
    rest = Hop(root, METHODS["two views"])
    assert rest.equals(whole) and rest.forwards < whole.forwards


def test_logits_that_were_kept_can_be_a_teacher(root: Path) -> None:
    Hop(root)
    path = next(path for path in files(root) if "logits" in load_file(path))
    shutil.copy(path, root / "teacher.safetensors")
    classes = f"[{', '.join(Lock().classes_of(load_spec(root / 'spec.yaml').data))}]"
    teacher = f"{{$replace: {{arch: outputs, outputs: teacher.safetensors, kind: logits, classes: {classes}}}}}"
    sets = [f"teacher={teacher}", "distill.phases={$replace: {joint: {losses: {kd: 1}}}}"]
    kept = Hop(root, ["distill.phases={$replace: {joint: {losses: {kd: 1}}}}"])
    assert Hop(root, sets).equals(kept)


# ---------------------------------------------------------------- where it stays live


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        (["augment.crop=0.8"], "views are endless; clip.views makes them finite"),
        (["augment.mixup=0.2"], "augment mixes clips, and mixed clips do not come back"),
        (["distill.phases={$replace: {joint: {losses: {ce: 1, graft: 1}}}}"], "graft continues in the teacher"),
    ],
)
def test_what_cannot_come_back_stays_live_and_is_said(root: Path, sets: list[str], reason: str) -> None:
    hop = Hop(root, sets)
    assert f"student: the guides run in every step: {reason}" in hop.notes and not files(root)
    assert any(reason in line for line in _plan_lines(root, sets))


def test_off_and_several_processes_are_said(root: Path) -> None:
    for runtime, reason in (({"cache_teacher": "off"}, "cache_teacher is off"), ({"gpus": 2}, "several processes")):
        assert any(reason in line for line in _plan_lines(root, [], **runtime))


def test_plan_says_what_is_kept(root: Path) -> None:
    lines = _plan_lines(root, METHODS["hint"])
    assert any(line.startswith("  the guides' outputs are kept on the disk, up to ") for line in lines)
    assert "    keeps of the guides: Gaussians of layer1" in lines
    assert any(line.startswith("    keeps of the guides: logits, layer1 4x8x8, layer2 2x4x4") for line in lines), lines
    lines = _plan_lines(root, METHODS["frozen blocks"])
    assert "    keeps the output of the student's frozen blocks, up to layer1" in lines


def test_a_full_disk_means_memory_and_no_room_at_all_means_live(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = Hop(root, cache_teacher="off")
    monkeypatch.setattr(keeping, "free_disk", lambda _: 1000)
    kept = Hop(root)
    assert "kept in memory" in kept.notes and kept.equals(live) and kept.forwards < live.forwards and not files(root)
    monkeypatch.setattr(keeping, "free_memory", lambda: 1000)
    none = Hop(root)
    assert "half of what is free is 500 bytes on the disk and 500 bytes in memory" in none.notes
    assert none.equals(live) and none.forwards == live.forwards


def test_a_folder_that_cannot_be_written_means_memory(root: Path) -> None:
    live = Hop(root, cache_teacher="off")
    (root / "cache").mkdir(exist_ok=True)
    (root / "cache" / "kept").write_text("in the way", "utf-8")
    kept = Hop(root)
    assert "these outputs are kept in memory instead" in kept.notes and kept.equals(live)


TEACHER = """\
import torch
from torch import nn


class Norm(nn.Module):
    def forward(self, feat):
        return LINE


def build(classes):
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv3d(3, 6, 3, (1, 2, 2), 1), Norm(), nn.ReLU()))
    net.add_module("layer1", nn.Sequential(nn.Conv3d(6, 6, 3, 2, 1), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, classes)))
    return net
"""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("feat - feat.mean((0, 2, 3, 4), keepdim=True)", "depends on the other clips of the batch"),
        ("feat + 0.1 * torch.randn_like(feat)", "the network draws random numbers"),
        (
            "feat + torch.arange(len(feat), device=feat.device)[:, None, None, None, None]",
            "depends on the other clips of the batch",
        ),
    ],
)
def test_a_network_whose_outputs_are_not_of_the_clip_alone_stays_live(root: Path, line: str, reason: str) -> None:
    (root / "net.py").write_text(TEACHER.replace("LINE", line), "utf-8")
    sets = ["teacher={$replace: {arch: file, path: net.py, params: 1000, epochs: 1, labels: all}}"]
    sets += ["distill.phases={$replace: {joint: {losses: {kd: 1, ce: 1}}}}"]
    live, kept = Hop(root, sets, cache_teacher="off"), Hop(root, sets)
    assert kept.equals(live) and "the teacher runs in every step: " in kept.notes and reason in kept.notes
    assert not files(root)


# ---------------------------------------------------------------- rows


def test_a_row_counts_only_with_its_checksum() -> None:
    rows = KeptRows.in_memory(6, (3,), torch.float32)
    values = torch.arange(9.0).view(3, 3)
    rows.put(np.array([4, 0, 4]), values)
    assert rows.kept(np.arange(6)).tolist() == [True, False, False, False, True, False]
    assert torch.equal(rows.take(np.array([0, 4])), values[[1, 0]])
    opened = KeptRows(rows.values, rows.sums, (3,), torch.float32)
    rows.values[4, 0] ^= 1
    assert opened.kept(np.array([0, 4, 0])).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_every_type_come_back(dtype: torch.dtype) -> None:
    rows = KeptRows.in_memory(4, (2, 5), dtype)
    values = torch.randn(4, 2, 5).to(dtype)
    rows.put(np.arange(4), values)
    assert torch.equal(rows.take(np.array([2, 1, 2])), values[[2, 1, 2]])


def test_outputs_come_back_in_the_layout_of_the_network() -> None:
    form = Form("layer1")
    clip = torch.randn(4, 3, 2, 4, 4)

    def compute(batch: Batch) -> dict[Form, torch.Tensor]:
        return {form: batch.clip_B3THW.contiguous(memory_format=torch.channels_last_3d)}

    kept = Kept(compute, lambda form, shape, dtype: KeptRows.in_memory(4, shape, dtype), lambda reason: None)
    batch = Batch(clip, torch.zeros(4), slots=np.arange(4))
    for _ in range(2):
        found = kept.get(batch, [form])
        assert found is not None and torch.equal(found[form], clip)
        assert found[form].stride() == compute(batch)[form].stride() != clip.stride()
