"""What the language offers beside running: check --format json, explain, diff, schema, recipes, init, docs/spec.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from stagedkd import compile_plan, load_spec
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.describe import entries
from stagedkd.spec.fields import HIDDEN
from stagedkd.spec.jsonschema import json_schema
from stagedkd.spec.reference import reference
from stagedkd.spec.schema import Section, Spec, Train, TrainPatch
from stagedkd.spec.yaml import parse_yaml, read_yaml
from tests.conftest import REPO, SPECS, TINY, Command


def plain(value: object) -> object:
    """Tuples to lists, as jsonschema wants them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def test_check_for_editors(project: Path, stagedkd: Command) -> None:
    good = stagedkd("check", "specs/tiny.yaml", "--format", "json")
    assert good.returncode == 0 and json.loads(good.stdout) == {"ok": True, "problems": []}
    (project / "specs" / "bad.yaml").write_text("extends: tiny.yaml\ntrain: {lrr: 1}\nseed: x\n", "utf-8")
    bad = stagedkd("check", "specs/bad.yaml", "--format", "json")
    found = json.loads(bad.stdout)
    assert bad.returncode == 2 and bad.stderr == "" and not found["ok"]
    assert [(p["line"], p["column"], p["hint"]) for p in found["problems"]] == [
        (2, 9, "did you mean 'lr'?"),
        (3, 7, "allowed: 0 to 2,147,483,647"),
    ]
    (project / "specs" / "torn.yaml").write_text("a: [\n", "utf-8")
    assert json.loads(stagedkd("check", "specs/torn.yaml", "--format", "json").stdout)["problems"][0]["line"] == 2
    warned = stagedkd("check", "specs/tiny.yaml", "--set", "cascade=[{arch: resnet3d, width: 12, blocks: [1, 1]}]")
    assert (
        warned.returncode == 0
        and "warning: hop 1 goes from" in warned.stdout
        and "the network grows\n --> --set:1:1" in warned.stdout
    )


def test_explain(project: Path, stagedkd: Command) -> None:
    (project / "specs" / "child.yaml").write_text(
        "extends: tiny.yaml\ntrain: {lr: 2e-2}\nteacher: {arch: r3d_18}\n", "utf-8"
    )
    found = stagedkd("explain", "specs/child.yaml", "train.lr", "--set", "train.lr=3e-2")
    value, words = found.stdout.splitlines()
    assert value.split() == [
        "train.lr",
        "0.03",
        "--set",
        "overrides",
        "0.02",
        "at",
        "specs/child.yaml:2:13;",
        "overrides",
        "0.01",
        "at",
        "specs/tiny.yaml:5:24",
    ]
    assert words == "Peak learning rate of the schedule. (number; above 0, below 100; default 0.001)"
    whole = stagedkd("explain", "specs/child.yaml").stdout
    assert "clip.size" in whole and "note: dropped 'teacher.width': arch is now r3d_18" in whole
    rows = json.loads(stagedkd("explain", "specs/child.yaml", "teacher", "--json").stdout)
    assert [r["path"] for r in rows if r["source"] != "default"] == ["teacher.arch", "teacher.epochs", "teacher.labels"]
    wrong = stagedkd("explain", "specs/child.yaml", "train.lrr")
    assert wrong.returncode == 2 and "did you mean 'train.lr'?" in wrong.stderr
    assert "known keys: data, clip" in stagedkd("explain", "specs/child.yaml", "zzz").stderr


def test_diff_names_values_and_the_stages_that_they_invalidate(project: Path, stagedkd: Command) -> None:
    (project / "specs" / "child.yaml").write_text(
        "extends: tiny.yaml\nstudent: {train: {lr: 2e-2}}\ncascade: []\n", "utf-8"
    )
    found = stagedkd("diff", "specs/tiny.yaml", "specs/child.yaml").stdout.splitlines()
    assert found[0].split() == ["cascade", "[0.5]", "(specs/tiny.yaml:7:10)", "->", "[]", "(specs/child.yaml:3:10)"]
    assert found[1].split() == ["student.train.lr", "(absent)", "->", "0.02", "(specs/child.yaml:2:23)"]
    assert "stages: 4 the same, 4 changed, 2 only in the first" in found
    both = json.loads(stagedkd("diff", "specs/tiny.yaml", "--set", "student.train.lr=2e-2", "--json").stdout)
    first, second = (
        compile_plan(load_spec("specs/tiny.yaml")),
        compile_plan(load_spec("specs/tiny.yaml", ["student.train.lr=2e-2"])),
    )
    changed = {s.name for s in second.stages if s.key != first.stage(s.name).key}
    assert {s["stage"] for s in both["stages"] if s["state"] == "changed"} == changed and changed
    assert [v["path"] for v in both["values"]] == ["student.train.lr"]
    assert stagedkd("diff", "specs/tiny.yaml").stdout.startswith("no value differs")


def test_the_published_schema_is_fresh_and_partial() -> None:
    assert json.loads((REPO / "stagedkd.schema.json").read_text("utf-8")) == json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    assert len(SPECS) >= 7
    for path in SPECS:
        first = path.read_text("utf-8").splitlines()[0]
        assert (
            first
            == f"# yaml-language-server: $schema={'../' * (len(path.relative_to(REPO).parts) - 1)}stagedkd.schema.json"
        ), path
        assert list(validator.iter_errors(plain(read_yaml(path).plain()))) == [], path
    good = [
        "student: {width: 8}",
        "data: {classes: 6}",
        "distill: {phases: {joint: {losses: {kd: 0.5, ce: {$delete: true}}}}}",
        "extends: [a.yaml, b.yaml]",
        "recipe: kd",
        "cascade: auto",
        "cascade: [0.5, {arch: resnet3d}]",
        "train: {$replace: {lr: 1}}",
        "grid: {seeds: 3, axes: {train.lr: [1, 2], student: {a: {width: 8}}}, exclude: [{seed: 1}]}",
        TINY,
    ]
    bad = [
        "student: {widht: 8}",
        "train: {Lr: 1}",
        "data: {kind: shapes, path: x}",
        "teacher: {arch: r3d_18, width: 3}",
        "trian: {}",
        "train: {lr: 0}",
        "cascade: none",
        "grid: {axis: {}}",
        "distill: {phases: {a.b: {}}}",
        "clip: {short: loops}",
        "student: {digest: x}",
    ]
    for text in good:
        assert list(validator.iter_errors(plain(parse_yaml(text, "x").plain()))) == [], text
    for text in bad:
        assert list(validator.iter_errors(plain(parse_yaml(text, "x").plain()))), text


def test_schema_and_recipes_commands(stagedkd: Command) -> None:
    assert json.loads(stagedkd("schema").stdout) == json.loads(json.dumps(json_schema()))
    listed = stagedkd("recipes").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [
        "at",
        "ce",
        "crd",
        "dgkd",
        "dist",
        "dkd",
        "early_stopped_teacher",
        "elr",
        "features_first",
        "fixmatch",
        "gce",
        "graft",
        "hint",
        "kd",
        "label_smoothing",
        "logit_std",
        "mean_teacher",
        "mlld",
        "nst",
        "ofa",
        "pkt",
        "reviewkd",
        "rkd",
        "same_label_teacher",
        "sce",
        "sdd",
        "shuffled_teacher",
        "sp",
        "staged",
        "staged_clean",
        "stagewise",
        "takd",
        "wkd_f",
        "wttm",
    ] and any(line.startswith("kd ") and "Hinton" in line for line in listed)
    assert stagedkd("recipes", "kd").stdout == (REPO / "stagedkd" / "recipes" / "kd.yaml").read_text("utf-8")
    wrong = stagedkd("recipes", "kdd")
    assert wrong.returncode == 2 and "did you mean 'kd'?" in wrong.stderr


def _all(base: type[Section]) -> list[type[Section]]:
    return [found for below in base.__subclasses__() for found in (below, *_all(below))]


def test_the_reference_is_fresh_and_every_field_is_documented() -> None:
    assert (REPO / "docs" / "spec.md").read_text("utf-8") == reference()
    sections = [s for s in _all(Section) if s.__module__.startswith("stagedkd.spec.schema")]
    assert len(sections) > 30
    for section in sections:
        assert section.__doc__, section
        for row in entries(section):
            assert row.doc.endswith((".", "`.", ")")) and row.type and ":" in row.place, (section, row)
    text = reference()
    for name in Spec.model_fields.keys() - HIDDEN:
        assert f"| `{name}` |" in text
    assert Train.model_fields.keys() == TrainPatch.model_fields.keys()


def test_the_shipped_ablations_are_short() -> None:
    found = sorted((REPO / "specs" / "ablations").glob("*.yaml"))
    assert {p.stem for p in found} >= {"losses", "cascade", "cuts", "labels"}
    assert all(len(p.read_text("utf-8").splitlines()) < 20 for p in found)


# ---------------------------------------------------------------- init


@pytest.mark.slow
def test_init_writes_a_spec_that_loads_and_refuses_to_overwrite(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, stagedkd: Command
) -> None:
    for path in ("params.yaml", "specs/tiny.yaml"):
        (tmp_path / path).unlink()
    shutil.copytree(clips / "weizmann", tmp_path / "my videos")
    found = stagedkd("init", "my videos")
    assert found.returncode == 0, found.stderr
    *lines, cost, following = found.stdout.splitlines()
    assert cost.startswith("the run will take about ") and "guessed from FLOPs" in cost
    assert [*lines, following] == [
        "read the table my videos/clips.csv",
        "wrote params.yaml: this folder is now a project",
        "wrote specs/my_videos.yaml: 90 clips of 10 classes (bend, jack, jump, pjump, run, side, skip, walk, ...), about "
        + found.stdout.split("about ")[1].split(" ")[0]
        + " frames each",
        "next: stagedkd run specs/my_videos.yaml",
    ]
    spec = load_spec("specs/my_videos.yaml")
    assert spec.data.model_dump()["path"] == "my videos/clips.csv" and "bend" in (
        tmp_path / "specs" / "my_videos.yaml"
    ).read_text("utf-8")
    again = stagedkd("init", "my videos")
    assert again.returncode == 2 and "exists already" in again.stderr
    assert stagedkd("check", "specs/my_videos.yaml", "--shapes").returncode == 0
    (tmp_path / "my videos" / "clips.csv").unlink()
    folder = stagedkd("init", "my videos", "--out", "specs/folder.yaml")
    assert folder.returncode == 0 and load_spec("specs/folder.yaml").data.kind == "folder", folder.stderr
    assert stagedkd("lock", "specs/folder.yaml").returncode == 0
    for name, words in [("nowhere", "is not a folder"), ("specs", "no videos below")]:
        wrong = stagedkd("init", name, "--out", "specs/x.yaml")
        assert wrong.returncode in (1, 2) and words in wrong.stderr and not (tmp_path / "specs" / "x.yaml").exists()


def test_init_fits_folds_to_few_groups(tmp_path: Path, clips: Path) -> None:
    from stagedkd.data.draft import draft

    for name, people in {"two": ["daria", "denis"], "three": ["daria", "denis", "eli"], "one": ["daria"]}.items():
        for action in ("bend", "jack"):
            (tmp_path / name / action).mkdir(parents=True)
            for person in people:
                shutil.copy(clips / "weizmann" / action / f"{person}_{action}.avi", tmp_path / name / action)
    made = draft(tmp_path / "two", tmp_path, tmp_path)
    assert "folds: 2, test_folds: 0" in made.text and made.clips == 4
    assert "folds: 3" in draft(tmp_path / "three", tmp_path, tmp_path).text
    outside = draft(tmp_path / "three", tmp_path / "two", tmp_path / "two")
    assert str(tmp_path / "three") in outside.text
    with pytest.raises(DataError, match=r"no training clip|too few"):
        draft(tmp_path / "one", tmp_path, tmp_path)
    shutil.rmtree(tmp_path / "three" / "jack")
    with pytest.raises(DataError, match="has 1 class"):
        draft(tmp_path / "three", tmp_path, tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        draft(tmp_path / "none", tmp_path, tmp_path)
