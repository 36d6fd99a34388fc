"""Keys: what changes them, what does not, and that they never change by accident."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from stagedkd import compile_plan, load_spec
from stagedkd.errors import LockError, SpecError
from stagedkd.plan.compare import fields_of
from stagedkd.plan.graph import Plan
from stagedkd.plan.key import FOLDER_FORM, Key, canonical, digest, stage_key
from stagedkd.plan.lock import DataLock, Lock, read_lock, write_lock
from stagedkd.spec.cuts import student_cut
from stagedkd.spec.schema.networks.hf import HfStudent
from stagedkd.store.manifest import Manifest, Upstream, manifest_of
from tests.conftest import REPO, TINY


def keys(plan: Plan) -> dict[str, str | None]:
    return {stage.name: stage.key for stage in plan.stages}


def tiny(*overrides: str) -> dict[str, str | None]:
    return keys(compile_plan(load_spec("specs/tiny.yaml", overrides)))


def changed(project: Path, *overrides: str) -> set[str]:
    before, after = tiny(), tiny(*overrides)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_digests_are_pinned() -> None:
    """A change here changes every key that anyone has stored: bump the versions of the kinds, and say so."""
    value = [None, True, 1, 1.0, "1", {"b": 0.1, "a": (1, 2)}]
    assert digest(value) == "a6210630374e857d539c446f941d46430a7d440dd6531e66634f7fdf9c4a08b7"
    plan = compile_plan(load_spec(REPO / "specs" / "quickstart.yaml"))
    assert {s.name: s.key.short for s in plan.stages if s.key} == PINNED


PINNED = {
    "data": "b72b154aecfa",
    "labels": "64b27d6d747b",
    "teacher": "7a6009a07024",
    "assistant-1": "c77bb2a7a95b",
    "student": "abaf6a2a4b15",
    "control-ce": "a96b9b2c552d",
    "evaluate-teacher": "5afc6648557f",
    "evaluate-assistant-1": "e32a529f3456",
    "evaluate-student": "a2849b1a58cd",
    "evaluate-control-ce": "dba48137db99",
}


def test_a_family_that_computes_other_bits_has_a_revision_in_its_keys(project: Path) -> None:
    tsm = "student={arch: tsm, backbone: mobilenet_v3_small, substages: 3, epochs: 5}"
    student = compile_plan(load_spec("specs/tiny.yaml", ["cascade=[]", tsm])).stage("student").work
    assert fields_of(student)["arch.revision"] == 2
    teacher = compile_plan(load_spec("specs/tiny.yaml")).stage("teacher").work
    assert not [name for name in fields_of(teacher) if name.endswith("revision")]
    with pytest.raises(SpecError, match="'revision' cannot be set: stagedkd sets it"):
        load_spec("specs/tiny.yaml", ["cascade=[]", tsm.replace("epochs", "revision: 2, epochs")])


def test_every_stage_has_its_role_and_no_key_hangs_on_it() -> None:
    plan = compile_plan(load_spec(REPO / "specs" / "quickstart.yaml"))
    assert {stage.name: stage.role for stage in plan.stages} == {
        "data": "data",
        "labels": "labels",
        "teacher": "teacher",
        "assistant-1": "assistant",
        "student": "student",
        "control-ce": "control",
        **{f"evaluate-{name}": "evaluate" for name in ("teacher", "assistant-1", "student", "control-ce")},
    }
    assert [stage.name for stage in plan.of_role("student")] == ["student"] and not plan.of_role("refine")
    inputs = {name: stage.identity for name, stage in plan.inputs(plan.stage("student")).items()}
    assert stage_key(plan.stage("student").work, inputs) == plan.stage("student").key


def test_a_key_is_a_string_with_names() -> None:
    key = Key("0123456789abcdef" * 4)
    assert (key.short, key.folder("teach")) == ("0123456789ab", "teach-0123456789ab")
    assert Key.parse("teach-0123456789ab") == ("teach", "0123456789ab") and Key.parse("0123") == ("", "0123")
    assert Key.parse("teach-0123.token") == ("teach", "0123.token") and Key.parse("") == ("", "")
    assert key.is_meant("0123", "teach") and key.is_meant(key.folder("teach"), "teach") and key.is_meant(key, "teach")
    assert not key.is_meant("refine-0123", "teach") and not key.is_meant("123", "teach")
    assert re.fullmatch(FOLDER_FORM, key.folder("teach")) and not re.fullmatch(FOLDER_FORM, f"teach-{key}")
    assert json.dumps({key: key}) == f'{{"{key}": "{key}"}}' and canonical(key) == canonical(str(key))


def test_keys_go_through_pydantic_as_plain_strings() -> None:
    plan = compile_plan(load_spec(REPO / "specs" / "quickstart.yaml"))
    manifest = manifest_of(plan, plan.stage("student"))
    again = Manifest.model_validate_json(manifest.model_dump_json(), strict=False)
    assert again == manifest and all(isinstance(key, Key) for key in (again.key, *again.closure, *again.needs.values()))
    with pytest.raises(ValidationError):
        Upstream.model_validate({"work": plan.stages[0].work, "needs": {"data": 3}})


def test_types_are_told_apart() -> None:
    found = [digest(v) for v in (1, 1.0, True, "1", None, [1], ["1"], {"1": 1}, [[1]], "", [], {})]
    assert len(set(found)) == len(found)
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})
    with pytest.raises(TypeError):
        canonical({1, 2})


def test_names_comments_and_runtime_change_no_key(project: Path) -> None:
    before = tiny()
    text = "# a comment\n" + TINY.replace("grow:", "first:").replace("joint:", "second:")
    (project / "specs" / "other.yaml").write_text(text, "utf-8")
    (project / "params.yaml").write_text("runtime: {device: cpu, threads: 1, workers: 7, store: elsewhere}\n", "utf-8")
    assert keys(compile_plan(load_spec("specs/other.yaml"))) == before


def test_the_learning_rate_of_the_student_leaves_the_teacher_and_tuned_assistants_alone(project: Path) -> None:
    below = {"student", "evaluate-student", "control-ce", "evaluate-control-ce"}
    assert changed(project, "student.train.lr=5e-3") == below | {"assistant-1", "evaluate-assistant-1"}
    text = TINY.replace("cascade: [0.5]", "cascade: [{share: 0.5, train: {lr: 1e-2}}]")
    (project / "specs" / "tiny.yaml").write_text(text, "utf-8")
    assert changed(project, "student.train.lr=5e-3") == below
    (project / "specs" / "tiny.yaml").write_text(TINY.replace("cascade: [0.5]", "cascade: []"), "utf-8")
    assert changed(project, "distill.phases.joint.train.lr=5e-3") == {"student", "evaluate-student"}


def test_what_changes_what(project: Path) -> None:
    everything = set(tiny())
    assert changed(project, "evaluate.split=test") == {n for n in everything if n.startswith("evaluate")}
    assert changed(project, "seed=1") == everything - {"data", "labels", "teacher", "evaluate-teacher"}
    assert changed(project, "labels.seed=1") == everything - {"data"}
    assert changed(project, "data.seed=1") == everything
    assert changed(project, "train.lr=2e-2") == everything - {"data", "labels"}


@pytest.mark.parametrize(
    ("blocks", "number", "cut"),
    [
        (3, 1, [[1, 2, 3]]),
        (3, 2, [[1, 2], [3]]),
        (3, 3, [[1], [2], [3]]),
        (4, 3, [[1], [2, 3], [4]]),
        (5, 2, [[1, 2], [3, 4, 5]]),
    ],
)
def test_a_number_of_substages_has_the_keys_of_the_list_that_it_stands_for(
    project: Path, blocks: int, number: int, cut: list[list[int]]
) -> None:
    """Also in assistants by share, which copy the student's; the teacher's own number holds for its side."""
    shape = [f"{role}.blocks={[1] * blocks}" for role in ("teacher", "student")]
    runs = [[*(["stem"] if 1 in run else []), *(f"layer{i}" for i in run)] for run in cut]
    found = [
        keys(compile_plan(load_spec("specs/tiny.yaml", [*shape, f"student.substages={value}", *teacher])))
        for teacher in ([], ["teacher.substages=2"])
        for value in (number, json.dumps(runs))
    ]
    assert found[0] == found[1] and found[2] == found[3]
    assert {"student", "assistant-1"} <= found[0].keys() and (found[0] == found[2]) == (number == 2)


def test_a_number_of_substages_merges_the_single_layers_of_a_transformer() -> None:
    fields = {"arch": "hf", "model": "owner/name", "layers": 12, "epochs": 1}
    for number, ends in ((1, [12]), (3, [4, 8, 12]), (4, [3, 6, 9, 12]), (6, [2, 4, 6, 8, 10, 12])):
        cut = student_cut(HfStudent.model_validate(fields | {"substages": number}))
        assert [run[-1] for run in cut] == [f"layer{end}" for end in ends] and cut[0][0] == "stem"
    natural = student_cut(HfStudent.model_validate(fields))
    assert natural == student_cut(HfStudent.model_validate(fields | {"substages": 4}))


def test_phase_order_counts(project: Path) -> None:
    lines = TINY.splitlines()
    grow = next(i for i, line in enumerate(lines) if "grow:" in line)
    lines[grow], lines[grow + 1] = lines[grow + 1], lines[grow]
    before = tiny()["student"]
    (project / "specs" / "tiny.yaml").write_text("\n".join(lines), "utf-8")
    assert tiny()["student"] != before


def test_without_a_lock_keys_are_unknown_and_with_one_they_are_not(project: Path) -> None:
    text = TINY.replace("kind: shapes, classes: 4, train: 48, val: 16, test: 16", "kind: csv, path: c.csv")
    (project / "specs" / "real.yaml").write_text(text, "utf-8")
    spec = load_spec("specs/real.yaml")
    assert set(keys(compile_plan(spec)).values()) == {None}
    entry = DataLock(fingerprint="f" * 64, classes=("a", "b"), clips=2, files={"x.avi": "1:ab"})
    lock = Lock().with_data("csv:c.csv", entry)
    assert None not in keys(compile_plan(spec, lock)).values()
    write_lock(project / "stagedkd.lock", lock)
    assert read_lock(project / "stagedkd.lock") == lock
    (project / "stagedkd.lock").write_text("{", "utf-8")
    with pytest.raises(LockError, match="not a lock file"):
        read_lock(project / "stagedkd.lock")


def test_one_by_one_becomes_a_phase_each(project: Path) -> None:
    plan = compile_plan(load_spec("specs/tiny.yaml"))
    phases = plan.stage("student").work.model_dump()["phases"]
    assert [(p["name"], p["trained"], p["frozen"], p["pairs"], p["head"]) for p in phases] == [
        ("grow.1", (0,), (), ((0, 0),), False),
        ("grow.2", (1,), (0,), ((1, 1),), False),
        ("joint", (0, 1), (), ((0, 0), (1, 1)), True),
    ]


LIGHT = [
    "import stagedkd",
    # a run that has nothing to do reads its report
    "\n".join(
        f"import {'.'.join(path.relative_to(REPO).with_suffix('').parts)}"
        for path in sorted((REPO / "stagedkd/report").rglob("*.py"))
        if path.stem != "__init__"
    ),
    *(
        f"import sys; sys.argv = {argv!r}; from stagedkd.cli import main\ntry: main()\nexcept SystemExit: pass"
        for argv in (
            ["stagedkd", "--help"],
            ["stagedkd", "check", "specs/tiny.yaml"],
            ["stagedkd", "plan", "specs/tiny.yaml"],
        )
    ),
]


@pytest.mark.parametrize("code", LIGHT)
def test_nothing_heavy_is_imported(project: Path, code: str) -> None:
    heavy = "import sys; heavy = {'torch', 'torchvision', 'transformers', 'matplotlib', 'dvc', 'av'} & set(sys.modules); assert not heavy, heavy"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\n{heavy}"], cwd=project, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_a_wrong_runtime_is_refused_at_its_place(project: Path) -> None:
    from stagedkd.errors import SpecError, UsageError
    from stagedkd.plan.runtime import load_runtime

    with pytest.raises(UsageError, match="--device gpu"):
        load_runtime(project, device="gpu")
    (project / "params.yaml").write_text("runtime:\n  threds: 2\n", "utf-8")
    with pytest.raises(SpecError) as caught:
        load_runtime(project)
    assert str(caught.value.problems[0].place).endswith("params.yaml:2:3")
