"""A tiny run of the whole staged method: a golden of its losses and shares, and each part at work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command

STAGED = """\
data: {kind: shapes, classes: 4, train: 64, val: 16, test: 16}
clip: {frames: 4, size: 16}
augment: {crop: 0.8, jitter: 0.1}
labels: {clean: 0.5, noisy: 0.5, noise: {kind: symmetric, rate: 0.5}}
train: {batch: 16, lr: 1e-3}  # so low that last bits, which differ between CPUs, do not grow
teacher: {arch: resnet3d, width: 16, blocks: [1, 1], epochs: 2}
recipe: staged
distill: {pairing: correlation}
cascade: [0.4]
refine: {rounds: 1, folds: 2}
student: {arch: resnet3d, width: 8, blocks: [1, 1], substages: [[stem, layer1], [layer2]], epochs: 4}
"""


@pytest.fixture
def staged(project: Path, stagedkd: Command) -> Path:
    (project / "specs" / "staged.yaml").write_text(STAGED, "utf-8")
    found = stagedkd("run", "specs/staged.yaml")
    assert found.returncode == 0, found.stderr
    return project


def artifacts(project: Path, kind: str) -> list[Path]:
    return sorted((project / "store").glob(f"{kind}-*"))


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "files" / "manifest.json").read_text("utf-8"))["metrics"]


def test_a_tiny_staged_run_has_each_part_at_work(staged: Path, request: pytest.FixtureRequest) -> None:
    """Golden: changes only with `--golden`, and with a raised version of a kind of work."""
    hops = artifacts(staged, "distill")
    assert len(hops) == 2  # a progressive cascade: the teacher's hop to the assistant, the assistant's to the student
    params = json.loads((staged / "results" / "staged" / "metrics.json").read_text("utf-8"))
    sizes = [params[name]["params"] for name in ("teacher", "student")]
    assert sizes[0] > params["assistants"][0]["params"] > sizes[1]
    found: dict[str, float] = {}
    for number, folder in enumerate(hops):
        losses, terms = metrics_of(folder)["losses"], metrics_of(folder)["terms"]
        assert losses.keys() == {"features", "joint"}  # substages learn features first, then everything
        assert terms["features"].keys() == {"hint"} and terms["joint"].keys() == {"ce", "pseudo", "kd", "graft"}
        for phase, means in losses.items():
            found |= {f"{number} {phase} {name}": value for name, value in means.items()}
        mixtures = json.loads((folder / "files" / "correlation.json").read_text("utf-8"))["mixtures"]
        assert len(mixtures) == 4  # measured in every epoch: correlation decides what is compared
        for row in mixtures:
            for column in zip(*row["shares"], strict=True):
                assert sum(share for share in column if share is not None) == pytest.approx(1)
    (refined,) = artifacts(staged, "refine")
    assert metrics_of(refined)  # the labels go through a round of refinement before the hops
    path = Path(__file__).with_name("golden_staged.json")
    if request.config.getoption("--golden"):
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    golden = json.loads(path.read_text("utf-8"))
    assert found == pytest.approx(golden, rel=2e-4)  # AVX2 and AVX-512 differ by 4e-5 at most
