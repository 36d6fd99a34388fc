"""Teachers from elsewhere: class probabilities, logits or embeddings by clip, from a file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stagedkd import load_spec
from stagedkd.data.mix import Batch
from stagedkd.errors import DataError, SpecError
from stagedkd.models.network import EMBEDDING
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.work import TeachWork
from stagedkd.spec.rules import weights_note
from stagedkd.spec.schema import OutputsArch
from stagedkd.stages.outputs import read_outputs
from stagedkd.train.guides import TableGuide
from tests.conftest import Command
from tests.tools import pinned

CLASSES = ("right", "left", "down", "up")
SPEC = """\
data: {kind: shapes, classes: 4, train: 32, val: 16, test: 16}
clip: {frames: 4, size: 16}
labels: {clean: 0.25}
train: {batch: 8}
teacher: {arch: outputs, outputs: soft.csv, kind: probabilities%s}
student: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
distill:
  phases:
    joint: {losses: {ce: 0.1, kd: 0.9}}
"""


def soft(clips: int, seed: int = 0) -> np.ndarray:
    """Probabilities (clips, 4) that name the class of each simulated clip, the clip's number modulo 4."""
    p = np.random.default_rng(seed).dirichlet(np.ones(4), clips) * 0.3
    p[np.arange(clips), np.arange(clips) % 4] += 0.7
    return p


def write_csv(path: Path, p: np.ndarray, classes: tuple[str, ...] = CLASSES, key: str = "path") -> None:
    with path.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow([key, *classes])
        for i, row in enumerate(p):
            out.writerow([f"shapes:{i}" if key == "path" else i, *(repr(float(v)) for v in row)])


def arch(**fields: Any) -> OutputsArch:
    values = {"arch": "outputs", "outputs": "soft.csv", "kind": "probabilities"}
    return OutputsArch.model_validate(values | fields)


def refused(root: Path, **fields: Any) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        read_outputs(pinned(arch(**fields), root), root, CLASSES)
    return caught.value.message, str(caught.value.hint)


def test_columns_in_any_order_and_lists_give_the_same_logits(tmp_path: Path) -> None:
    p = soft(6)
    write_csv(tmp_path / "soft.csv", p[:, [2, 0, 3, 1]], ("down", "right", "up", "left"))
    one = read_outputs(pinned(arch(), tmp_path), tmp_path, CLASSES)
    assert one.clips == tuple(f"shapes:{i}" for i in range(6))
    assert np.allclose(one.values, np.log(np.maximum(p, 1e-6)), atol=1e-6) and one.values.dtype == np.float32
    pq.write_table(pa.table({"clip": list(range(6)), "probabilities": p[:, ::-1].tolist()}), tmp_path / "soft.parquet")
    lists = read_outputs(pinned(arch(outputs="soft.parquet", classes=CLASSES[::-1]), tmp_path), tmp_path, CLASSES)
    assert np.array_equal(lists.values, one.values) and lists.clips == tuple(range(6))
    raw = read_outputs(pinned(arch(kind="logits"), tmp_path), tmp_path, CLASSES)
    assert np.allclose(raw.values, p, atol=1e-6)
    paths = [f"shapes:{i}" for i in range(8)]
    assert one.rows_of(paths, [7, 3, 0]).tolist() == [-1, 3, 0] == lists.rows_of(paths, [7, 3, 0]).tolist()


@pytest.mark.parametrize(
    ("rows", "message", "hint"),
    [
        (["clap,right,left,down,up"], "soft.csv has no column 'path' or 'clip'", "name the clips in one column"),
        (["path,right,left,down"], "soft.csv lacks 'up'", "the classes are right, left, down, up"),
        (
            ["path,right,left,down,up,sideways", "a,1,0,0,0,0"],
            "soft.csv has 'sideways', which the data does not have",
            "the classes are right, left, down, up",
        ),
        (["path,right,left,down,up", "a,1,0,0"], "soft.csv:2 has 4 values, but the header 5", "write a value"),
        (["path,right,right,left,down,up"], "soft.csv has the column 'right' twice", "keep one of them"),
        (["path,right,left,down,up", "a,1,0,0,x"], "soft.csv:2: 'x' of class 'up' is no number", "write a number"),
        (
            ["path,right,left,down,up", "a,1,0,0,0", "b,0.5,0.5,0.5,0"],
            "soft.csv:3: the values sum to 1.5",
            "probabilities are at least 0 and sum to 1; for scores of another scale, set kind: logits",
        ),
        (["path,right,left,down,up", "a,1.5,-0.5,0,0"], "soft.csv:2: a value is -0.5", "probabilities are"),
        (["path,right,left,down,up", "a,nan,0,0,1"], "soft.csv:2: a value is nan", "write finite numbers"),
        (
            ["path,right,left,down,up", "a,1,0,0,0", "b,1,0,0,0", "a,0,1,0,0"],
            "soft.csv:4: clip a has a row already, soft.csv:2",
            "keep one row for each clip",
        ),
        (["clip,right,left,down,up", "a,1,0,0,0"], "soft.csv:2: 'a' is no clip", "fill the column 'clip'"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_their_row(
    tmp_path: Path, rows: list[str], message: str, hint: str
) -> None:
    (tmp_path / "soft.csv").write_text("\n".join(rows) + "\n", "utf-8")
    found = refused(tmp_path)
    assert found[0] == message and found[1].startswith(hint)


def test_parquet_rows_are_counted_from_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", "b"], "logits": [[1.0] * 4, [1.0] * 3]}), tmp_path / "soft.parquet")
    fields = {"outputs": "soft.parquet", "kind": "logits", "classes": CLASSES}
    assert refused(tmp_path, **fields)[0] == "soft.parquet, row 2: 3 values for 4 classes"
    assert refused(tmp_path, **(fields | {"kind": "probabilities"}))[0] == "soft.parquet has no column 'probabilities'"
    assert refused(tmp_path, **(fields | {"classes": CLASSES[:3]}))[0] == "soft.parquet: classes lacks 'up'"
    (tmp_path / "soft.parquet").write_bytes(b"no parquet")
    assert "soft.parquet cannot be read" in refused(tmp_path, **fields)[0]


def test_a_table_gives_rows_and_mixes_them_like_the_clips() -> None:
    logits = torch.log_softmax(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), 1)
    guide, clip = TableGuide(logits), torch.zeros(3, 3, 1, 2, 2)
    batch = Batch(clip, torch.zeros(3, dtype=torch.long), torch.tensor([4, 0, 2]))
    found = guide.outputs(batch, (), True).logits
    assert found is not None and torch.equal(found, logits[[4, 0, 2]])
    assert guide.outputs(batch, (), False).logits is None
    order = torch.tensor([1, 2, 0])
    mixed = Batch(clip, batch.labels_B, batch.rows_B, order_B=order, fraction=0.7)
    expected = 0.7 * found.exp() + 0.3 * found[order].exp()
    got = guide.outputs(mixed, (), True).logits
    assert got is not None and torch.allclose(got.softmax(1), expected, atol=1e-6)


@pytest.fixture
def outside(project: Path) -> Path:
    (project / "specs" / "tiny.yaml").write_text(SPEC % "", "utf-8")
    write_csv(project / "soft.csv", soft(64))
    return project


def test_embeddings_are_read_from_columns_and_lists(tmp_path: Path) -> None:
    feat = np.random.default_rng(0).normal(size=(6, 5))
    write_csv(tmp_path / "soft.csv", feat, ("a", "b", "c", "d", "e"))
    one = read_outputs(pinned(arch(kind="embeddings"), tmp_path), tmp_path, CLASSES)
    assert np.allclose(one.values, feat, atol=1e-6) and one.values.dtype == np.float32
    pq.write_table(pa.table({"clip": list(range(6)), "embeddings": feat.tolist()}), tmp_path / "soft.parquet")
    lists = read_outputs(pinned(arch(kind="embeddings", outputs="soft.parquet"), tmp_path), tmp_path, CLASSES)
    assert np.array_equal(lists.values, one.values)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path", "a"], "soft.csv has no embeddings"),
        (["path,1,2", "a,0.5,x"], "soft.csv:2: 'x' 2 is no number"),
        (["path,1,2", "a,0.5,inf"], "soft.csv:2: a value is inf"),
    ],
)
def test_wrong_embeddings_are_refused_with_their_row(tmp_path: Path, rows: list[str], message: str) -> None:
    (tmp_path / "soft.csv").write_text("\n".join(rows) + "\n", "utf-8")
    assert refused(tmp_path, kind="embeddings")[0] == message


def test_embeddings_of_unequal_length_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", "b"], "embeddings": [[1.0, 2.0], [1.0]]}), tmp_path / "soft.parquet")
    found = refused(tmp_path, kind="embeddings", outputs="soft.parquet")
    assert found == ("soft.parquet, row 2: 1 values, but 2 in the first row", "write as many values for each clip")


def test_a_table_gives_embeddings_and_mixes_them_like_the_clips() -> None:
    feat_nC = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    guide = TableGuide(embeddings_nC=feat_nC)
    batch = Batch(torch.zeros(2, 3, 1, 2, 2), torch.zeros(2, dtype=torch.long), torch.tensor([4, 0]))
    found = guide.outputs(batch, (EMBEDDING,), False)
    assert found.logits is None and torch.equal(found.maps[EMBEDDING], feat_nC[[4, 0], :, None, None, None])
    mixed = Batch(batch.clip_B3THW, batch.labels_B, batch.rows_B, order_B=torch.tensor([1, 0]), fraction=0.25)
    expected = 0.25 * feat_nC[[4, 0]] + 0.75 * feat_nC[[0, 4]]
    assert torch.allclose(guide.outputs(mixed, (EMBEDDING,), False).maps[EMBEDDING][:, :, 0, 0, 0], expected)


def problem(*overrides: str) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", list(overrides))
    one = caught.value.problems[0]
    return one.message, one.hint


def test_what_outputs_cannot_do_is_refused_at_its_place(outside: Path) -> None:
    assert problem("distill.phases.joint.losses.hint=1.0") == (
        "'hint' compares feature maps, and the teacher's outputs have no feature maps",
        "use losses on logits, for example kd",
    )
    assert problem("distill.phases.joint.losses.sp={taps: embedding}")[0] == (
        "'sp' compares feature maps, and the teacher's outputs have no feature maps"
    )
    assert problem("distill.phases.joint.losses.graft=1.0")[0].startswith("'graft' compares feature maps")
    assert problem("distill.phases.joint.losses.sdd=1.0") == (
        "'sdd' compares the logits of regions, and outputs from a file have none",
        "use kd",
    )
    assert problem("teacher.weights=w.pth")[0] == "outputs from a file have no weights"
    for cut in ("2", "[[stem], [layer1]]"):
        assert problem(f"teacher.substages={cut}") == ("outputs from a file have no substages", "remove substages")
    assert problem("distill.warm_start=true")[0] == (
        "a student cannot start from the weights of a teacher that is outputs from a file"
    )
    assert problem("teacher.outputs=none.csv")[0] == "none.csv is not a file in the project"
    assert problem("teacher.outputs=soft.txt")[0] == "soft.txt is no .csv, .parquet or .safetensors file"
    assert "'teacher.epochs'" in problem("teacher.epochs=3")[0]
    assert problem("refine={kind: noise_model, epochs: 1}", "distill.phases.joint.losses.pseudo=1")[0] == (
        "refine trains the teacher out of fold, but outputs from a file cannot be trained"
    )
    assert "outputs" in problem("student={$replace: {arch: outputs, outputs: soft.csv, kind: logits}}")[0]


def test_what_embeddings_cannot_do_is_refused_at_its_place(outside: Path) -> None:
    text = (SPEC % "").replace("kind: probabilities", "kind: embeddings")
    (outside / "specs" / "tiny.yaml").write_text(text, "utf-8")
    assert problem() == (
        "'kd' compares logits, and the teacher's outputs are embeddings",
        "use losses with taps: embedding, for example hint or sp",
    )
    phase = "distill.phases.joint.losses"
    assert problem(f"{phase}={{$replace: {{ce: 1, hint: 1}}}}") == (
        "'hint' compares feature maps, and the teacher's outputs have no feature maps",
        "set taps: embedding, or use a loss that has it, for example hint or sp",
    )
    assert problem(f"{phase}={{$replace: {{ce: {{weigh: confidence}}}}}}")[0] == (
        "weigh: confidence needs the teacher's logits, and its outputs are embeddings"
    )
    embedded = f"{phase}={{$replace: {{ce: 1, hint: {{taps: embedding}}}}}}"
    assert load_spec("specs/tiny.yaml", [embedded])
    assert problem(embedded, "teacher.classes=[right, left, down, up]")[0] == "embeddings have no classes"
    text = text.replace(
        "teacher: {", "teacher: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}\nco_teachers: [{"
    ).replace("embeddings}", "embeddings}]")
    (outside / "specs" / "tiny.yaml").write_text(text, "utf-8")
    assert problem()[0] == "the logits of co_teachers are compared, and embeddings are none"


def test_the_content_of_the_file_is_the_key(outside: Path) -> None:
    before = compile_plan(load_spec("specs/tiny.yaml"))
    (outside / "other.csv").write_bytes((outside / "soft.csv").read_bytes())
    assert compile_plan(load_spec("specs/tiny.yaml", ["teacher.outputs=other.csv"])).stage("teacher").key == (
        before.stage("teacher").key
    )
    write_csv(outside / "soft.csv", soft(64, seed=1))
    after = compile_plan(load_spec("specs/tiny.yaml"))
    for name in ("teacher", "student"):
        assert after.stage(name).key != before.stage(name).key
    work = after.stage("teacher").work
    assert isinstance(work, TeachWork) and work.phase is None
    assert weights_note(after.spec.teacher).startswith(
        "is the outputs of soft.csv; the labels behind them: not declared"
    )


def test_a_file_with_wrong_classes_is_refused_before_anything_runs(stagedkd: Command, outside: Path) -> None:
    write_csv(outside / "soft.csv", soft(64), ("right", "left", "down", "jump"))
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "Traceback" not in text
    assert "stage teacher: soft.csv lacks 'up' and has 'jump', which the data does not have" in text
    assert not list(outside.glob("store/*-*"))


def test_missing_training_clips_are_refused(stagedkd: Command, outside: Path) -> None:
    write_csv(outside / "soft.csv", soft(20))
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "Traceback" not in text
    assert "soft.csv lacks 12 of 32 training clips: 'shapes:20', 'shapes:21'" in text


@pytest.mark.slow
@pytest.mark.parametrize("clips", [64, 32])
def test_a_run_with_a_teacher_from_elsewhere(stagedkd: Command, outside: Path, clips: int) -> None:
    """Rows for the validation clips give its accuracy; without them it has none, and the report says so."""
    write_csv(outside / "soft.csv", soft(clips))
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc")
    assert done.returncode == 0, done.stderr
    (metrics,) = outside.glob("results/*/metrics.json")
    teacher = json.loads(metrics.read_text("utf-8"))["teacher"]
    assert teacher["top1"] == (1.0 if clips == 64 else None)
    assert ("the teacher has no accuracy" in (metrics.parent / "report.html").read_text("utf-8")) == (clips == 32)
    assert "nan" not in (metrics.parent / "report.html").read_text("utf-8").lower().replace("finance", "")
    assert stagedkd("report", "specs/tiny.yaml").returncode == 0
    assert stagedkd("check", "specs/tiny.yaml", "--shapes").returncode == 0


@pytest.mark.slow
def test_a_run_with_a_teacher_that_gives_embeddings(stagedkd: Command, outside: Path) -> None:
    write_csv(outside / "soft.csv", np.random.default_rng(0).normal(size=(64, 6)), tuple("abcdef"))
    text = (SPEC % "").replace("kind: probabilities", "kind: embeddings")
    text = text.replace("kd: 0.9", "hint: {taps: embedding}, sp: {taps: embedding}, crd: {taps: embedding}")
    (outside / "specs" / "tiny.yaml").write_text(text, "utf-8")
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc")
    assert done.returncode == 0, done.stderr
    assert "soft.csv has embeddings, so its accuracy is unknown" in " ".join((done.stdout + done.stderr).split())
    (metrics,) = outside.glob("results/*/metrics.json")
    assert json.loads(metrics.read_text("utf-8"))["teacher"]["top1"] is None


@pytest.mark.slow
def test_outputs_as_a_co_teacher(stagedkd: Command, outside: Path) -> None:
    text = (
        (SPEC % "")
        .replace(
            "teacher: {arch: outputs, outputs: soft.csv, kind: probabilities}",
            (
                "teacher: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}\n"
                "co_teachers: [{arch: outputs, outputs: soft.csv, kind: probabilities, share: 2.0}]"
            ),
        )
        .replace("kd: 0.9", "kd: 0.9, hint: 0.1")
    )
    (outside / "specs" / "tiny.yaml").write_text(text, "utf-8")
    done = stagedkd("run", "specs/tiny.yaml", "--no-dvc")
    assert done.returncode == 0, done.stderr
