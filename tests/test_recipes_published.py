"""The recipes of feature methods: what they compare, and phases that train the head alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stagedkd import compile_plan, load_spec
from stagedkd.errors import SpecError
from stagedkd.plan.work import DistillWork
from stagedkd.spec.schema import Losses
from stagedkd.spec.schema.losses.feature import Review
from stagedkd.train.loop import fit
from stagedkd.train.schedule import loss_weight
from tests.test_train import job, phase


@pytest.mark.parametrize(
    ("recipe", "loss", "weight", "reduce", "taps"),
    [
        ("at", "at", 1000, "sum", None),
        ("nst", "nst", 50, "sum", None),
        ("sp", "sp", 3000, None, "deepest"),
        ("rkd", "rkd", 25, None, "embedding"),
        ("pkt", "pkt", 30000, None, "embedding"),
        ("crd", "crd", 0.8, None, "embedding"),
        ("reviewkd", "review", 1, "sum", None),
        ("wkd_f", "gaussian_w2", 0.02, None, "deepest"),
    ],
)
def test_recipes_compare_what_their_papers_do(
    recipe: str, loss: str, weight: float, reduce: str | None, taps: str | None
) -> None:
    import yaml

    from tests.conftest import REPO

    values = yaml.safe_load((REPO / "stagedkd" / "recipes" / f"{recipe}.yaml").read_text("utf-8"))
    section = Losses.model_validate(values["distill"]["phases"]["train"]["losses"], strict=False).named()[loss]
    assert (
        section.weight == weight
        and getattr(section, "reduce", None) == reduce
        and getattr(section, "taps", None) == taps
    )


def test_a_relative_warm_up_rises_over_its_part_of_the_phase() -> None:
    loss = Review(weight=2.0, warmup_share=0.25)
    assert [loss_weight(loss, epoch, 8) for epoch in (0, 1, 2, 8)] == [0, 1, 2, 2]
    with pytest.raises(ValueError, match="warmup_epochs and warmup_share say the same"):
        Review(warmup_share=0.25, warmup_epochs=2.0)


def test_a_phase_may_train_the_head_alone(tmp_path: Path) -> None:
    work = job(tmp_path, (phase(trained=(), frozen=(0, 1, 2), losses=Losses.model_validate({"ce": 1.0})),))
    before = {name: tensor.clone() for name, tensor in work.student.net.state_dict().items()}
    fit(work)
    moved = {n.split(".")[0] for n, t in work.student.net.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {"fc"}


def test_the_head_alone_needs_losses_that_reach_it(project: Path) -> None:
    def loaded(losses: str):
        change = f"distill.phases.joint={{$replace: {{epochs: 1, substages: head, losses: {losses}}}}}"
        return load_spec("specs/tiny.yaml", ["cascade=[]", change])

    work = compile_plan(loaded("{ce: 1}")).stage("student").work
    assert isinstance(work, DistillWork) and work.phases[-1].trained == () and work.phases[-1].frozen == (0, 1)
    for losses, reason in (("{ce: 1, hint: 1}", "'hint' trains substages"), ("{hint: 1}", "'hint' trains substages")):
        with pytest.raises(SpecError) as caught:
            loaded(losses)
        wanted = f"phase 'joint' trains the head alone, but {reason}"
        assert wanted in [problem.message for problem in caught.value.problems]
