"""dvc.yaml from plans: its text, how it is merged and guarded. The real `dvc` is driven in test_dvc_repro.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stagedkd.dvc import sync as dvc
from stagedkd.dvc.pipeline import Pipeline, Source, dvc_stages, dvc_yaml, pruned, stale_entries
from stagedkd.dvc.sync import commit_run, find_stage, guard, load_project, sync
from stagedkd.dvc.text import MARK, quoted, read_stages, without
from stagedkd.errors import LockError, SpecError, StaleError, UsageError
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.load import load_experiment
from tests.conftest import OWN_NET, REPO, TINY, Command

SMALL = """\
data: {kind: shapes, classes: 2, train: 16, val: 8, test: 8}
clip: {frames: 4, size: 16}
labels: {clean: 0.5}
train: {batch: 8, lr: 1e-2}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
distill: {phases: {joint: {losses: {ce: 0.5, kd: 0.5}}}}
"""
USERS = """\
# all of this is mine
vars: [params.yaml]
stages:
  clean:   # with a comment
    cmd: |
      python clean.py ${runtime.data_dir}

    deps: [raw]   # in brackets
    outs:
      - data/clean
      # nothing more
  # what comes next is mine, too
  many:
    matrix: {a: [1, 2]}
    cmd: "echo ${item.a}"

artifacts:
  model: {path: data/clean}
"""


def source(text: str, folder: Path, name: str = "small") -> Source:
    (folder / f"{name}.yaml").write_text(text, "utf-8")
    return Source(
        f"specs/{name}.yaml", compile_experiment(load_experiment(folder / f"{name}.yaml")), (f"specs/{name}.yaml",)
    )


@pytest.fixture
def small(tmp_path: Path) -> Pipeline:
    return Pipeline((source(SMALL, tmp_path),))


def key(pipeline: Pipeline, name: str) -> str:
    (plan,) = pipeline.sources[0].plans.cells.values()
    found = plan.stage(name).key
    assert found is not None
    return found.short


def tracked(folder: Path, *specs: str, more: str = "") -> None:
    text = f"runtime: {{device: cpu, threads: 1{more}}}\ndvc: {{specs: [{', '.join(specs)}]}}\n"
    (folder / "params.yaml").write_text(text, "utf-8")


# ---------------------------------------------------------------- the text


def test_the_text_of_a_small_plan(small: Pipeline) -> None:
    data, labels, teacher, student = (key(small, name) for name in ("data", "labels", "teacher", "student"))
    text = dvc_yaml(small)
    head = f"""\
# The pipeline of the specs that params.yaml names under `dvc`. DVC runs it: dvc repro
stages:
  {MARK}
  stagedkd-guard:
    cmd: stagedkd dvc guard
    desc: fails if dvc.yaml does not match the specs
    meta: {{made_by: stagedkd}}
    deps:
      - specs/small.yaml
    params:
      - dvc
    outs:
      - store/dvc-guard.txt:
          persist: true
  prepare-{data}:
    cmd: stagedkd stage {data}
    desc: data of small
    meta: {{made_by: stagedkd, spec: specs/small.yaml, cell: ""}}
    deps:
      - store/dvc-guard.txt
    outs:
      - store/prepare-{data}/files:
          persist: true
  weaken-{labels}:
"""
    assert text.startswith(head)
    distill = f"""\
  distill-{student}:
    cmd: stagedkd stage {student}
    desc: student of small
    meta: {{made_by: stagedkd, spec: specs/small.yaml, cell: ""}}
    deps:
      - store/prepare-{data}/files
      - store/teach-{teacher}/files
      - store/weaken-{labels}/files
    outs:
      - store/distill-{student}/files:
          persist: true
"""
    assert distill in text
    report = """\
    params:
      - specs/small.yaml:
    outs:
      - results/small/README.md
      - results/small/metrics.json
      - results/small/plots
      - results/small/report.html
      - results/small/student.json
      - results/small/student.safetensors
    metrics:
      - results/small/summary.json
    plots:
      - results/small/networks.json:
          template: bar_horizontal
          x: top1
          y: network
          title: Top-1 of small
      - results/small/classes.json:
          template: bar_horizontal
          x: top1
          y: class
          title: "Top-1 by class, student of small"
"""
    assert text.endswith(report) and dvc_yaml(small) == text


def test_the_graph_is_that_of_the_plans_and_what_is_shared_is_there_once() -> None:
    """Held against the plans of a shipped grid, through a YAML reader that is not ours."""
    paths = ["specs/ablations/losses.yaml", "specs/quickstart.yaml"]
    experiments = [load_experiment(REPO / path) for path in paths]
    plans = [compile_experiment(experiment) for experiment in experiments]
    pipeline = Pipeline(tuple(Source(p, made, (p,)) for p, made in zip(paths, plans, strict=True)))
    stages = yaml.safe_load(dvc_yaml(pipeline))["stages"]
    unique = {s.key: s for made in plans for plan in made.cells.values() for s in plan.stages}
    assert len(stages) == len(unique) + 3 < sum(len(p.stages) for made in plans for p in made.cells.values())
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in stages)
    for made in plans:
        for plan in made.cells.values():
            for stage in plan.stages:
                above = {f"store/{plan.stage(n).folder}/files" for n in stage.needs.values()}
                found = stages[stage.folder]
                assert set(found["deps"]) == (above or {"store/dvc-guard.txt"})
                assert found["outs"] == [{f"store/{stage.folder}/files": {"persist": True}}]
    outs = [next(iter(o)) if isinstance(o, dict) else o for s in stages.values() for o in s["outs"]]
    assert len(outs) == len(set(outs))
    report = stages["report-losses"]
    assert {d.split("/")[1] for d in report["deps"]} == {s.folder for s in plans[0].unique.values()}
    assert stages["report-quickstart"]["metrics"] == ["results/quickstart/summary.json"]
    assert "results/losses/cells.csv" in report["outs"] and "results/losses/student.safetensors" not in report["outs"]


@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]{0,20}", fullmatch=True), unique=True, max_size=6))
def test_names_of_reports_are_plain_and_different(names: list[str]) -> None:
    from stagedkd.plan.graph import Plan, Plans
    from stagedkd.plan.lock import Lock
    from stagedkd.spec.load import load_spec

    spec = load_spec(REPO / "specs" / "quickstart.yaml")
    sources = tuple(
        Source(n, Plans(n, {}, {"": Plan(n, Lock(), (), spec.clip, 1, spec)}, {"": {}}), (n,)) for n in names
    )
    found = Pipeline(sources).reports
    assert len(found) == len(names)
    assert all(re.fullmatch(r"report-[a-z0-9]+(-[a-z0-9]+)*", name) for name in found)
    assert [s.name for s in found.values()] == names


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30))
def test_any_path_is_quoted_for_yaml_and_for_dvc(text: str) -> None:
    found = yaml.safe_load(f"- {quoted(text)}\n")[0]
    assert isinstance(found, str) and found.replace("\\${", "${") == text.replace("\\${", "${")
    assert not re.search(r"(?<!\\)\$\{", found)


def test_two_specs_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = (source(SMALL, tmp_path), source("name: small\n" + SMALL, tmp_path, "other"))
    with pytest.raises(UsageError, match=r"specs/small.yaml and specs/other.yaml are both named 'small'"):
        dvc_yaml(Pipeline(twice))


def test_the_lock_is_a_dependency_where_a_plan_rests_on_it(tmp_path: Path, small: Pipeline) -> None:
    lock = (REPO / "stagedkd.lock").read_text("utf-8")
    (tmp_path / "stagedkd.lock").write_text(lock, "utf-8")
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "w.yaml").write_text((REPO / "specs" / "weizmann.yaml").read_text("utf-8"), "utf-8")
    tracked(tmp_path, "specs/w.yaml")
    assert dvc_stages(load_project(tmp_path).pipeline)[0].deps == ("specs/w.yaml", "stagedkd.lock")
    assert "stagedkd.lock" not in dvc_stages(small)[0].deps
    (tmp_path / "stagedkd.lock").unlink()
    with pytest.raises(LockError, match=r"specs/w.yaml has stages without keys") as caught:
        dvc_yaml(load_project(tmp_path).pipeline)
    assert caught.value.hint == "run: stagedkd lock specs/w.yaml"


def test_the_guard_depends_on_all_that_the_specs_were_read_from(project: Path) -> None:
    (project / "nets").mkdir()
    (project / "nets" / "own.py").write_text(OWN_NET, "utf-8")
    (project / "mine.yaml").write_text("distill: {phases: {joint: {losses: {ce: 0.1, kd: 0.9}}}}\n", "utf-8")
    (project / "axis.yaml").write_text("distill: {phases: {joint: {losses: {ce: 1.0}}}}\n", "utf-8")
    own = "student: {$replace: {arch: file, path: nets/own.py, substages: [[stem], [mid]], epochs: 2}}"
    grid = "grid: {axes: {recipe: {a: ../axis.yaml, b: kd}}}"
    (project / "specs" / "child.yaml").write_text(f"extends: tiny.yaml\nrecipe: ../mine.yaml\n{own}\n{grid}\n", "utf-8")
    tracked(project, "specs/child.yaml", more=", store: kept/store")
    pipeline = load_project(project).pipeline
    first = dvc_stages(pipeline)[0]
    assert first.deps == ("axis.yaml", "mine.yaml", "nets/own.py", "specs/child.yaml", "specs/tiny.yaml")
    assert first.params == ("dvc", "runtime.store") and first.outs == ("kept/store/dvc-guard.txt",)


# ---------------------------------------------------------------- beside a user's own stages


def ours_out(text: str) -> str:
    stages = read_stages(text, "dvc.yaml")
    assert stages is not None
    left = without(text, {entry.name for entry in stages.entries if entry.managed}, "dvc.yaml")
    return "".join(line for line in left.splitlines(keepends=True) if line.strip() != MARK)


@pytest.mark.parametrize("text", [USERS, USERS.replace("\n", "\r\n"), re.sub("^  ", "      ", USERS, flags=re.M)])
def test_the_stages_of_a_user_stay_to_the_byte(small: Pipeline, text: str) -> None:
    made = dvc_yaml(small, text)
    assert ours_out(made) == text and dvc_yaml(small, made) == made
    assert ("\r\n" in made) == ("\r\n" in text) and (made.count("\r\n") in (0, made.count("\n")))
    mine, found = yaml.safe_load(text), yaml.safe_load(made)
    assert {name: found["stages"][name] for name in mine["stages"]} == mine["stages"]
    assert found["stages"].keys() - mine["stages"].keys() == {stage.name for stage in dvc_stages(small)}
    assert {name: found[name] for name in found if name != "stages"} == {
        "vars": mine["vars"],
        "artifacts": mine["artifacts"],
    }


PARTS = st.sampled_from(
    [
        "  a:\n    cmd: x\n",
        "  b: # note\n    cmd: [x,\n      y]\n",
        "  c:\n    cmd: >-\n      x\n      y\n\n",
        "  # words\n",
        "  d:\n    foreach: [1]\n    do: {cmd: 'x ${item}'}\n",
        "\n",
        "  e:\n    deps:\n    - p\n    cmd: 'x'  # behind\n",
        "  f:\n    cmd: x\n    params:\n    wdir: y\n",
        "  g:\n    cmd: x\n    desc:\n  # below an empty value\n",
    ]
)


@given(st.lists(PARTS, unique=True), st.integers(0, 9), st.sampled_from(["", "plots: []\n", "# the end\n", "\n\n"]))
def test_any_stages_stay_and_ours_keep_their_place(parts: list[str], at: int, end: str) -> None:
    """Whatever the user has, in any order, with ours of an older plan somewhere between."""
    plans = compile_experiment(load_experiment(REPO / "specs" / "quickstart.yaml"))
    pipeline = Pipeline((Source("specs/quickstart.yaml", plans, ("specs/quickstart.yaml",)),))
    users = "stages:\n" + "".join(parts) + end
    old = f"  {MARK}\n  teach-0123456789ab:\n    cmd: stagedkd stage 0123456789ab\n    outs:\n    - s/files\n"
    text = "stages:\n" + "".join([*parts[:at], old, *parts[at:]]) + end
    made = dvc_yaml(pipeline, text)
    if any(":" in part for part in parts):
        assert ours_out(made) == users
    assert "0123456789ab" not in made and dvc_yaml(pipeline, made) == made
    before = "stages:\n" + "".join(parts[:at])
    assert made.startswith(before + f"  {MARK}\n  stagedkd-guard:")
    fresh = dvc_yaml(pipeline, users)
    assert (
        dvc_yaml(pipeline, fresh) == fresh
        and yaml.safe_load(fresh)["stages"].keys() == yaml.safe_load(made)["stages"].keys()
    )


@pytest.mark.parametrize("text", ["", "stages:\n", "stages: {}\n", "plots: []", "# words\nplots: []\n"])
def test_a_file_without_stages_gets_them(small: Pipeline, text: str) -> None:
    made = dvc_yaml(small, text)
    assert yaml.safe_load(made)["stages"].keys() == {stage.name for stage in dvc_stages(small)}
    assert dvc_yaml(small, made) == made and text.split("stages")[0] in made


def test_what_cannot_be_merged_is_refused(small: Pipeline) -> None:
    with pytest.raises(StaleError, match=r"dvc.yaml:2: your stage 'report-small' has a name that stagedkd needs"):
        dvc_yaml(small, "stages:\n  report-small:\n    cmd: stagedkd report specs/small.yaml\n")
    with pytest.raises(StaleError, match=r"dvc.yaml:1: `stages` is written in braces"):
        dvc_yaml(small, "stages: {a: {cmd: x}}\n")
    for text in ("stages: [\n", "- a\n"):
        with pytest.raises(StaleError, match=r"^dvc.yaml: ") as caught:
            dvc_yaml(small, text)
        assert "stagedkd dvc sync" in caught.value.hint


def test_a_users_stage_that_calls_as_ours_do_is_the_users(small: Pipeline) -> None:
    mine = "stages:\n  report-other:\n    cmd: stagedkd report specs/other.yaml\n  weekly:\n    cmd: stagedkd stage 0123456789ab\n"
    assert ours_out(dvc_yaml(small, mine)) == mine


def test_stale_entries_go_from_the_lock_and_no_others(small: Pipeline) -> None:
    entry = "    cmd: {}\n    outs:\n    - path: {}\n      md5: 0\n"
    rows = {
        "clean": "python clean.py",
        "teach-000000000000": "stagedkd stage 000000000000",
        "report-gone": "stagedkd report specs/gone.yaml",
        "report-mine": "stagedkd report specs/mine.yaml",
        f"prepare-{key(small, 'data')}": f"stagedkd stage {key(small, 'data')}",
    }
    lock = "schema: '2.0'\nstages:\n" + "".join(f"  {n}:\n{entry.format(c, n)}" for n, c in rows.items())
    before = "stages:\n  report-gone:\n    cmd: stagedkd report specs/gone.yaml\n    meta: {made_by: stagedkd}\n"
    stale = stale_entries(before, dvc_yaml(small, before), lock)
    assert {s.name: s.outs for s in stale} == {n: (n,) for n in ("teach-000000000000", "report-gone")}
    left = yaml.safe_load(pruned(lock, stale))["stages"]
    assert left == {n: v for n, v in yaml.safe_load(lock)["stages"].items() if n not in {s.name for s in stale}}
    assert yaml.safe_load(without(lock, set(rows), "dvc.lock")) == {"schema": "2.0", "stages": {}}


# ---------------------------------------------------------------- the commands


def test_sync_check_and_guard(project: Path) -> None:
    tracked(project, "specs/tiny.yaml")
    for call in (lambda: sync(project, check=True, commit=True), lambda: guard(project)):
        with pytest.raises(StaleError, match=r"dvc\.yaml does not exist"):
            call()
    assert sync(project, check=False, commit=True)[0].startswith("wrote dvc.yaml: 12 new stages")
    text = (project / "dvc.yaml").read_bytes()
    assert (
        sync(project, check=True, commit=True) == sync(project, check=False, commit=True) == ["dvc.yaml is up to date"]
    )
    assert (project / "dvc.yaml").read_bytes() == text
    guard(project)
    once = (project / "store" / "dvc-guard.txt").read_bytes()
    spec = project / "specs" / "tiny.yaml"
    spec.write_text("# a comment changes no plan\n" + TINY, "utf-8")
    guard(project)
    assert (project / "store" / "dvc-guard.txt").read_bytes() == once
    spec.write_text(TINY.replace("width: 4,", "width: 4, train: {lr: 5e-3},"), "utf-8")
    for call in (lambda: sync(project, check=True, commit=True), lambda: guard(project)):
        with pytest.raises(StaleError, match=r"6 new stages, such as distill-.*; 6 obsolete stages") as caught:
            call()
        assert caught.value.hint == "run: stagedkd dvc sync" and caught.value.exit_code == 2
    assert (project / "dvc.yaml").read_bytes() == text


def test_sync_prunes_the_lock_and_the_ignored_files(project: Path) -> None:
    tracked(project, "specs/tiny.yaml")
    gone = "teach-0123456789ab"
    lock = f"schema: '2.0'\nstages:\n  {gone}:\n    cmd: stagedkd stage 0123456789ab\n    outs:\n    - path: store/{gone}/files\n  mine:\n    cmd: x\n"
    (project / "dvc.lock").write_text(lock, "utf-8")
    (project / "store" / gone).mkdir(parents=True)
    (project / "store" / gone / ".gitignore").write_text("/files\n", "utf-8")
    (project / "results" / "old").mkdir(parents=True)
    (project / "results" / "old" / ".gitignore").write_text("/metrics.json\n/mine\n", "utf-8")
    old = "stages:\n  report-old:\n    cmd: stagedkd report x\n    meta: {made_by: stagedkd}\n    outs:\n    - results/old/metrics.json\n"
    (project / "dvc.yaml").write_text(old, "utf-8")
    sync(project, check=False, commit=False)
    assert (project / "dvc.lock").read_text("utf-8") == "schema: '2.0'\nstages:\n  mine:\n    cmd: x\n"
    assert not (project / "store" / gone / ".gitignore").exists()
    assert (project / "results" / "old" / ".gitignore").read_text("utf-8") == "/mine\n"
    (project / "dvc.lock").write_text(lock, "utf-8")
    with pytest.raises(StaleError, match=r"dvc.lock has 1 obsolete stages"):
        sync(project, check=True, commit=False)


def test_a_stage_is_found_by_the_begin_of_its_key(project: Path) -> None:
    tracked(project, "specs/tiny.yaml")
    sync(project, check=False, commit=False)
    (plan,) = load_project(project).pipeline.sources[0].plans.cells.values()
    for stage in plan.stages:
        assert stage.key is not None
        for said in (stage.key, stage.key.short, stage.folder):
            assert find_stage(project, said)[1] == stage
    first = {}
    for stage in plan.stages:
        first.setdefault(str(stage.key)[0], []).append(stage)
    several = next((k for k, found in first.items() if len(found) > 1), "")  # ten keys, sixteen first digits
    if several:
        with pytest.raises(UsageError, match=f"{len(first[several])} stages have keys that begin with {several}"):
            find_stage(project, several)
    for unknown in ("0" * 12, "", plan.stages[0].identity.folder("refine")):
        with pytest.raises(UsageError, match="no stage of the specs") as caught:
            find_stage(project, unknown)
        assert "stagedkd dvc sync" in caught.value.hint


def test_params_that_are_wrong_are_said(project: Path) -> None:
    with pytest.raises(UsageError, match="lists no specs for DVC"):
        load_project(project)
    tracked(project, "specs/none.yaml", "../out.yaml", "specs/tiny.yaml")
    with pytest.raises(SpecError) as caught:
        load_project(project)
    assert [p.message.split("the spec ")[1].split()[0] for p in caught.value.problems] == [
        "specs/none.yaml",
        "../out.yaml",
    ]
    for text in ("dvc: {specs: []}", "dvc: {specs: specs/tiny.yaml}", "dvc: {spec: [a]}", "dvc: specs/tiny.yaml"):
        (project / "params.yaml").write_text(text + "\n", "utf-8")
        with pytest.raises(SpecError) as caught:
            load_project(project)
        assert caught.value.problems[0].place is not None and "'dvc" in caught.value.problems[0].message
    tracked(project, "specs/tiny.yaml", more=", store: /elsewhere")
    with pytest.raises(UsageError, match=r"runtime\.store is /elsewhere, outside the project"):
        load_project(project)


def test_the_committed_pipeline_is_up_to_date() -> None:
    assert sync(REPO, check=True, commit=False) == ["dvc.yaml is up to date"]
    assert "analytics = false" in (REPO / ".dvc" / "config").read_text("utf-8")


def test_a_run_tells_dvc_and_its_failure_is_a_note(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked(project, "specs/tiny.yaml")
    sync(project, check=False, commit=False)
    spec = project / "specs" / "tiny.yaml"
    plans, runtime = compile_experiment(load_experiment(spec)), load_runtime(project)
    assert commit_run(plans, plans.unique, runtime, spec, wrote=True) == []  # no DVC repository
    (project / ".dvc").mkdir()
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(dvc, "commit_stages", lambda _root, _store, stages: told.append(tuple(s.name for s in stages)))
    assert commit_run(plans, plans.unique, runtime, spec, wrote=True) == []
    assert not told  # there are no files
    first = next(iter(plans.unique.values()))
    (project / "store" / first.folder / "files").mkdir(parents=True)
    commit_run(plans, (), runtime, None, wrote=False)
    assert told == [("stagedkd-guard", first.folder)]
    lock = "stages:\n" + "".join(
        f"  {name}:\n    cmd: x\n" for name in ["report-tiny", *(s.folder for s in plans.unique.values())]
    )
    (project / "dvc.lock").write_text(lock, "utf-8")
    assert commit_run(plans, (), runtime, spec, wrote=False) == [] and len(told) == 1  # nothing new: DVC is not called
    for elsewhere in ({"store": Path("other")}, {}):
        monkeypatch.setenv("DVC_STAGE", "a stage of the user's" if not elsewhere else "")
        commit_run(plans, plans.unique, load_runtime(project, **elsewhere), spec, wrote=True)
        assert len(told) == 1
        monkeypatch.delenv("DVC_STAGE")
    monkeypatch.undo()
    monkeypatch.chdir(project)
    (note,) = commit_run(plans, plans.unique, runtime, spec, wrote=True)  # .dvc is an empty folder, which DVC refuses
    assert note.startswith("nothing was committed to DVC: ERROR")
    spec.write_text(TINY.replace("lr: 1e-2", "lr: 2e-2"), "utf-8")
    (note,) = commit_run(plans, plans.unique, runtime, spec, wrote=True)
    assert "dvc.yaml does not match the specs" in note and "(run: stagedkd dvc sync)" in note
    edited = compile_experiment(load_experiment(spec))
    (note,) = commit_run(edited, edited.unique, runtime, spec, wrote=True)
    assert note == "nothing was committed to DVC: dvc.yaml lacks 8 of these stages (run: stagedkd dvc sync)"


def test_nothing_heavy_is_loaded(project: Path, stagedkd: Command) -> None:
    tracked(project, "specs/tiny.yaml")
    names = ("torch", "torchvision", "matplotlib", "dvc", "av", "transformers")
    for arguments in (["dvc", "sync"], ["dvc", "sync", "--check"], ["dvc", "guard"], ["stage", "0"]):
        code = f"import sys; sys.argv = ['stagedkd', *{arguments}]\nfrom stagedkd.cli import main\ntry:\n    main()\nexcept SystemExit: pass\nassert not {{*{names}}} & sys.modules.keys(), sys.modules.keys()"
        found = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
