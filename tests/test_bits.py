"""Bits over machines: kernels whose sums depend on caches are not used, instructions can be limited, and a fused
optimizer never meets a state of another memory layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stagedkd.errors import UsageError
from stagedkd.models.pointwise import Pointwise
from stagedkd.plan.cpus import PORTABLE, chosen_instructions, limit_instructions
from stagedkd.stages.provenance import caches
from stagedkd.train.phases import load_optimizer
from tests.conftest import REPO, Command

SHORT = ("data.train=64", "data.val=16", "data.test=16", "teacher.epochs=6", "student.epochs=8")
STEPPED = {  # shipped specs on simulated clips, whose shapes are those of the other specs for the CPU
    "quickstart": (),
    "weak_labels": ("refine.rounds=1", "refine.folds=2", "labels.clean=0.5"),
}


def _gradients(conv: nn.Module, feat_BCTHW: Tensor, memory_format: torch.memory_format) -> list[Tensor]:
    feat = feat_BCTHW.detach().contiguous(memory_format=memory_format).requires_grad_()
    conv.zero_grad()
    (conv(feat) * torch.linspace(-1, 1, 5, dtype=feat.dtype)[None, :, None, None, None]).square().sum().backward()
    assert feat.grad is not None
    return [conv(feat).detach(), feat.grad, *(p.grad for p in conv.parameters() if p.grad is not None)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_a_pointwise_convolution_is_a_convolution(bias: bool, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours, plain = Pointwise(3, 5, bias=bias).double(), nn.Conv3d(3, 5, 1, bias=bias).double()
    plain.load_state_dict(ours.state_dict())
    feat_BCTHW = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    found, wanted = (_gradients(conv, feat_BCTHW, memory_format) for conv in (ours, plain))
    assert len(found) == 3 + bias
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_pointwise_convolution_follows_autocast() -> None:
    torch.manual_seed(0)
    conv, feat_BCTHW = Pointwise(3, 5), torch.randn(2, 3, 4, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        mixed_BCTHW = conv(feat_BCTHW)
    mixed_BCTHW.float().square().sum().backward()
    assert mixed_BCTHW.dtype == torch.bfloat16 and conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32
    torch.testing.assert_close(mixed_BCTHW.float(), conv(feat_BCTHW), rtol=0.02, atol=0.02)


def test_what_needs_no_gradient_gets_none() -> None:
    conv, feat_BCTHW = Pointwise(3, 5), torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    conv.weight.requires_grad_(False)
    conv(feat_BCTHW).sum().backward()
    assert conv.weight.grad is None and feat_BCTHW.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPED)
def test_no_kernel_whose_sums_depend_on_caches_runs_in_a_shipped_spec(name: str, tmp_path: Path) -> None:
    """oneDNN's `jit_1x1` sums the gradient of the weights in pieces of the size of the first-level cache."""
    (tmp_path / "params.yaml").write_text("runtime: {device: cpu, threads: 1, jobs: 1}\n", "utf-8")
    shutil.copytree(REPO / "specs", tmp_path / "specs", dirs_exist_ok=True)
    sets = [part for value in (*SHORT, *STEPPED[name]) for part in ("--set", value)]
    command = [sys.executable, "-m", "stagedkd", "run", f"specs/{name}.yaml", "--no-dvc", *sets]
    env = {**os.environ, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    kernels = [line.split(",") for line in done.stdout.splitlines() if ",exec," in line and ",convolution," in line]
    assert any("backward_weights" in parts for parts in kernels), "oneDNN's lines have another form"
    bad = {
        ",".join(parts)
        for parts in kernels
        if "backward_weights" in parts and any("1x1" in part for part in parts[6:8])
    }
    assert not bad, sorted(bad)[:3]


def test_a_kernel_that_depends_on_caches_would_be_found() -> None:
    """So the test above can fail: a plain convolution takes it."""
    code = "import torch; torch.conv3d(torch.randn(16, 8, 4, 8, 8), torch.randn(16, 8, 1, 1, 1, requires_grad=True))"
    env = {**os.environ, "ONEDNN_VERBOSE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"{code}.sum().backward()"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    rows = [line.split(",") for line in done.stdout.splitlines() if "backward_weights" in line]
    if not rows:
        pytest.skip("oneDNN does not compute this gradient here")
    assert any("1x1" in part for parts in rows for part in parts[6:8])


def test_instructions_are_limited_before_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="before torch is loaded") as caught:
        limit_instructions({})
    assert "ATEN_CPU_CAPABILITY=avx2" in caught.value.render()
    limit_instructions(dict(PORTABLE))  # it is loaded with these
    monkeypatch.delitem(sys.modules, "torch")
    environ = {"MKL_CBWR": "AVX2"}
    limit_instructions(environ)
    assert environ == PORTABLE
    assert chosen_instructions({"MKL_CBWR": "AVX2", "HOME": "/"}) == "MKL_CBWR=AVX2" and chosen_instructions({}) == ""


@pytest.mark.slow
def test_portable_bits_reach_the_trainings_and_their_facts(tmp_path: Path, stagedkd: Command) -> None:
    (tmp_path / "params.yaml").write_text("runtime: {device: cpu, threads: 1, bits: portable}\n", "utf-8")
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc")
    assert done.returncode == 0, done.stderr
    facts = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "store").glob("teach-*/run.json")]
    assert facts and all(fact["instructions"] == chosen_instructions(PORTABLE) for fact in facts)
    assert all(fact["caches"] == caches() and fact["cpu_capability"] in ("AVX2", "DEFAULT") for fact in facts)


def test_caches_are_listed_by_level(tmp_path: Path) -> None:
    for number, facts in enumerate((("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"))):
        (tmp_path / f"index{number}").mkdir()
        for name, value in zip(("level", "type", "size"), facts, strict=True):
            (tmp_path / f"index{number}" / name).write_text(value + "\n", "utf-8")
    assert caches(tmp_path) == "L1d 48K, L2 2048K" and caches(tmp_path / "none") == ""


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_step_goes_on_from_a_state_of_another_layout(kind: type[torch.optim.Optimizer]) -> None:
    """findings/fused_adamw_state_layout.sh"""

    def trained(after: torch.memory_format, *, fused: bool) -> Tensor:
        torch.manual_seed(0)
        conv = nn.Conv3d(3, 4, 3)
        momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        make = lambda: kind([{"params": conv.parameters()}], lr=1e-2, fused=fused, **momentum)  # noqa: E731
        optimizer = make()
        for step in range(6):
            if step == 3:
                state = optimizer.state_dict()
                conv = conv.to(memory_format=after)
                optimizer = make()
                load_optimizer(optimizer, state)
            clip = torch.randn(2, 3, 5, 6, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            conv(clip).square().mean().backward()
            optimizer.step()
        return conv.weight.detach().clone()

    plain = trained(torch.contiguous_format, fused=False)
    for after in (torch.contiguous_format, torch.channels_last_3d):
        torch.testing.assert_close(trained(after, fused=True), plain, rtol=0, atol=1e-6)
