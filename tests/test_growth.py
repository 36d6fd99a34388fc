"""What must not grow with the project: each thing that was mended is held against its plain definition, and counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd.data import index
from stagedkd.data.draws import Stream, permutation
from stagedkd.data.index import Entry, split_entries
from stagedkd.dvc import sync as dvc
from stagedkd.dvc.sync import find_stage, sync
from stagedkd.dvc.text import made_for, merged, read_stages
from stagedkd.files import read_record
from stagedkd.plan.compile import compile_experiment
from stagedkd.spec.load import load_experiment
from stagedkd.spec.schema import Folder
from stagedkd.stages.tables import read_table, read_times, write_table
from stagedkd.train import order
from stagedkd.train.order import Passes, balanced, by_class, in_turn
from tests.conftest import TINY, Command
from tests.videos import write_video

Ids = npt.NDArray[np.int64]


# ---------------------------------------------------------------- the order of the clips


def plainly_in_turn(rows: Ids, places: Ids, seed: int, stream: Stream, phase: int) -> tuple[Ids, Ids]:
    """The definition: permutations of all rows, one after the other."""
    turns = places // len(rows)
    orders = {turn: rows[permutation(len(rows), seed, stream, phase, turn)] for turn in set(turns.tolist())}
    pairs = zip(turns.tolist(), places.tolist(), strict=True)
    return np.array([orders[turn][place % len(rows)] for turn, place in pairs], np.int64), turns


def plainly_balanced(rows: Ids, labels: Ids, places: Ids, seed: int, phase: int) -> tuple[Ids, Ids]:
    """The definition: rounds of all classes, and each class in turn."""
    classes = np.unique(labels)
    chosen, turns = np.empty(len(places), np.int64), np.empty(len(places), np.int64)
    for i, place in enumerate(places.tolist()):
        number = place // len(classes)
        which = permutation(len(classes), seed, Stream.CLASS_ORDER, phase, number)[place % len(classes)]
        own = rows[labels == classes[which]]
        turns[i] = number // len(own)
        own_order = permutation(len(own), seed, Stream.CLASS_CLIPS, phase, int(classes[which]), int(turns[i]))
        chosen[i] = own[own_order[number % len(own)]]
    return chosen, turns


ROWS = st.lists(st.integers(0, 4), min_size=1, max_size=30)
STEPS = st.lists(st.integers(0, 40), min_size=1, max_size=8)  # in any order, as several threads ask


@given(ROWS, STEPS, st.integers(1, 9), st.integers(0, 99), st.integers(0, 2))
def test_a_batch_is_the_same_whatever_was_drawn_before(
    labels: list[int], steps: list[int], batch: int, seed: int, phase: int
) -> None:
    passes, given_labels = Passes(), np.array(labels)
    rows = np.arange(len(labels)) * 3 + 1
    members = by_class(rows, given_labels)
    for step in steps:
        places = np.arange(step * batch, (step + 1) * batch)
        for stream in (Stream.ORDER, Stream.ORDER_UNLABELLED):
            wanted = plainly_in_turn(rows, places, seed, stream, phase)
            assert np.array_equal(in_turn(rows, places, seed, stream, phase, passes), wanted)
        wanted = plainly_balanced(rows, given_labels, places, seed, phase)
        assert np.array_equal(balanced(members, places, seed, phase, passes), wanted)


def test_an_epoch_permutes_the_clips_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(order, "permutation", lambda n, *parts: sizes.append(n) or permutation(n, *parts))
    passes, rows = Passes(), np.arange(1000)
    for step in range(100):  # three passes and a bit, in batches that do not divide one
        in_turn(rows, np.arange(step * 33, step * 33 + 33), 1, Stream.ORDER, 0, passes)
    assert sizes == [1000] * 4
    sizes.clear()
    members = by_class(rows, rows % 10)
    for step in range(100):
        balanced(members, np.arange(step * 10, step * 10 + 10), 1, 0, passes)
    assert Counter(sizes) == {10: 100, 100: 10}  # one for each round, and one for each class
    assert sum(len(kept) for kept in passes.kept.values()) <= 2 * len(passes.kept)


def test_ties_between_folds_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    bits = index.bits
    monkeypatch.setattr(index, "bits", lambda *parts: calls.append(parts) or bits(*parts))
    split_entries([Entry(f"{i}.avi", "ab"[i % 2], f"g{i // 2}") for i in range(200)], Folder(kind="folder", path="x"))
    assert len(calls) == Folder(kind="folder", path="x").folds


# ---------------------------------------------------------------- tables

CLOCKS = st.lists(st.lists(st.floats(0, 1e4), max_size=6).map(sorted), min_size=1, max_size=8)


@given(CLOCKS)
@settings(max_examples=30)
def test_times_come_back_to_the_bit_and_equal_clocks_are_one_array(clocks: list[list[float]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path, listed = Path(folder) / "clips.parquet", Path(folder) / "listed.parquet"
        write_table(path, {"frames": list(map(len, clocks)), "times": [np.array(c) for c in clocks]})
        write_table(listed, {"frames": list(map(len, clocks)), "times": clocks})
        if any(clocks):  # with no time at all, lists have no type
            assert path.read_bytes() == listed.read_bytes()
        times = read_times(path.read_bytes())
        assert [t.tolist() for t in times] == clocks == read_table(path.read_bytes(), "times")["times"]
        assert list(read_table(path.read_bytes(), "frames")) == ["frames"]
    even = [np.arange(n) / 30 for n in (300, 200, 300, 250)]
    with tempfile.TemporaryDirectory() as folder:
        write_table(path := Path(folder) / "clips.parquet", {"times": even})
        times = read_times(path.read_bytes())
    assert all(np.array_equal(a, b) for a, b in zip(times, even, strict=True))
    assert len({t.__array_interface__["data"][0] for t in times}) == 1


# ---------------------------------------------------------------- DVC

GRID = TINY + "grid: {seeds: 3, axes: {student.width: [4, 8]}}\n"


@pytest.fixture
def tracked(project: Path) -> Path:
    """A project whose dvc.yaml has the stages of a grid and of a single spec."""
    (project / "specs" / "grid.yaml").write_text(GRID, "utf-8")
    text = "runtime: {device: cpu, threads: 1}\ndvc: {specs: [specs/grid.yaml, specs/tiny.yaml]}\n"
    (project / "params.yaml").write_text(text, "utf-8")
    sync(project, check=False, commit=False)
    return project


def test_a_stage_of_dvc_compiles_the_one_cell_that_dvc_yaml_names(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells: list[int] = []

    def counting(experiment: Any, lock: Any) -> Any:
        cells.append(len(experiment.cells))
        return compile_experiment(experiment, lock)

    monkeypatch.setattr(dvc, "compile_experiment", counting)
    stages = {
        stage.identity: stage
        for spec in ("grid", "tiny")
        for stage in compile_experiment(load_experiment(tracked / "specs" / f"{spec}.yaml")).unique.values()
    }
    for key, stage in stages.items():
        for said in (key, key.short, stage.folder):
            plan, found = find_stage(tracked, said)
            assert found.identity == key and found in plan.stages
    assert set(cells) == {1} and len(cells) == 3 * len(stages)
    spec = tracked / "specs" / "tiny.yaml"
    spec.write_text(TINY.replace("lr: 1e-2", "lr: 2e-2"), "utf-8")
    grid = compile_experiment(load_experiment(tracked / "specs" / "grid.yaml"))
    student = grid.cells["student.width=8,seed=2"].stage("student").identity
    assert find_stage(tracked, student)[1].identity == student  # the grid did not change, whatever else did
    (tracked / "params.yaml").write_text("dvc: {specs: [specs/tiny.yaml]}\n", "utf-8")
    with pytest.raises(dvc.StaleError):
        find_stage(tracked, student)


def test_a_stage_that_the_specs_no_longer_have_is_refused(tracked: Path) -> None:
    plans = compile_experiment(load_experiment(tracked / "specs" / "grid.yaml"))
    student = next(stage for stage in plans.unique.values() if stage.role == "student")
    (tracked / "specs" / "grid.yaml").write_text(GRID.replace("kd: 0.9", "kd: 0.8"), "utf-8")
    with pytest.raises(dvc.StaleError, match="does not match the specs"):
        find_stage(tracked, student.folder)
    (tracked / "specs" / "grid.yaml").write_text("no spec\n", "utf-8")
    with pytest.raises(dvc.SpecError):
        find_stage(tracked, student.folder)


def test_the_cell_of_a_stage_is_read_only_where_sync_wrote_it(tracked: Path) -> None:
    text = (tracked / "dvc.yaml").read_text("utf-8")
    entries = read_stages(text, "dvc.yaml")
    assert entries is not None
    work = [entry.name for entry in entries.entries if not entry.name.startswith(("report", "stagedkd"))]
    named = {name: made_for(text, name) for name in work}
    assert set(named.values()) >= {("specs/grid.yaml", "student.width=8,seed=2")}
    assert made_for(text, "stagedkd-guard") is made_for(text, "report-grid") is made_for(text, "none-0") is None
    assert made_for(text.replace("made_by: stagedkd", "made_by: me"), work[0]) is None
    assert made_for(text.replace(f"  {work[0]}:\n", f"  {work[0]}: &a\n"), work[0]) is None


ENTRY = st.dictionaries(st.sampled_from("abcdefgh"), st.text("xyz", min_size=1, max_size=3), max_size=6)


@given(ENTRY, ENTRY, st.booleans(), st.integers(1, 4))
def test_fresh_entries_take_the_place_of_old_ones_in_dvc_lock(
    old: dict[str, str], new: dict[str, str], ends: bool, indent: int
) -> None:
    import yaml

    def lock(entries: dict[str, str], indent: int, more: str = "") -> str:
        pad = " " * indent
        rows = [f"{pad}{n}:\n{pad}  cmd: {c}\n{pad}  outs:\n{pad}  - path: {n}\n" for n, c in entries.items()]
        stages = "stages:\n" + "".join(rows) if entries else "stages: {}\n"
        return f"schema: '2.0'\n{stages}{more}"

    text = lock(old, indent, "" if ends else "datasets: []\n").removesuffix("\n" if ends else "")
    found = merged(text, lock(new, 2))
    read = yaml.safe_load(found)
    wanted = {name: {"cmd": c, "outs": [{"path": name}]} for name, c in {**old, **new}.items()}
    assert (read["stages"] or {}) == wanted and list(read["stages"] or {}) == list(wanted)
    assert ("datasets" in read) is not ends
    kept = lock({n: c for n, c in old.items() if n not in new}, indent).partition("stages:\n")[2]
    assert all(line in found for line in kept.splitlines())
    assert merged("", lock(new, 2)) == lock(new, 2)
    assert yaml.safe_load(merged("schema: '2.0'\n", lock(new, 2))) == yaml.safe_load(lock(new, 2))


def test_all_stages_go_to_dvc_in_one_call_and_what_a_kill_left_is_removed(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagedkd.dvc import commit

    mine = "  mine:\n    cmd: echo\n    outs: [mine.txt]\n"
    path = tracked / "dvc.yaml"
    path.write_text(path.read_text("utf-8") + mine, "utf-8")
    plans = compile_experiment(load_experiment(tracked / "specs" / "grid.yaml"))
    for stage in plans.unique.values():
        (tracked / "store" / stage.folder / "files").mkdir(parents=True)
    (tracked / ".dvc").mkdir()
    (tracked / commit.FOLDER).mkdir()
    (tracked / "dvc.lock").write_text("schema: '2.0'\nstages:\n  mine:\n    cmd: old\n", "utf-8")
    calls: list[tuple[str, ...]] = []

    def call(root: Path, *arguments: str) -> str:
        import yaml

        calls.append(arguments)
        folder = root / commit.FOLDER
        stages = yaml.safe_load((folder / "dvc.yaml").read_text("utf-8"))["stages"]
        assert {stage["wdir"] for stage in stages.values()} == {".."}
        lines = "".join(f"  {name}:\n    cmd: {stage['cmd']}\n" for name, stage in stages.items())
        (folder / "dvc.lock").write_text("schema: '2.0'\nstages:\n" + lines, "utf-8")
        return ""

    monkeypatch.setattr(commit, "run_dvc", call)
    said = sync(tracked, check=False, commit=True)
    count = len(plans.unique)
    assert said == [f"committed to DVC {count} stages that the store has"]
    assert calls == [("commit", "-f", f"{commit.FOLDER}/dvc.yaml")] and not (tracked / commit.FOLDER).exists()
    locked = read_stages((tracked / "dvc.lock").read_text("utf-8"), "dvc.lock")
    assert locked is not None
    commands = {entry.name: entry.command for entry in locked.entries}
    assert commands.pop("mine") == "old"
    assert commands.keys() == {"stagedkd-guard", *(stage.folder for stage in plans.unique.values())}
    monkeypatch.setattr(commit, "run_dvc", lambda *_: "ERROR: busy")
    (tracked / "dvc.lock").write_text("", "utf-8")
    (note,) = dvc.commit_run(plans, (), dvc.load_runtime(tracked), None, wrote=False)
    assert note == "nothing was committed to DVC: ERROR: busy" and not (tracked / commit.FOLDER).exists()


# ---------------------------------------------------------------- requests to other processes


def test_a_request_has_no_list_of_files_and_gets_it_back(tmp_path: Path) -> None:
    from stagedkd.launch.protocol import StageRequest
    from stagedkd.plan.lock import DataLock, Lock
    from stagedkd.plan.runtime import Runtime

    (tmp_path / "s.yaml").write_text(TINY.replace(TINY.splitlines()[0], "data: {kind: folder, path: clips}"), "utf-8")
    files = {f"class/{i:06d}.avi": f"{i}:{i:064x}" for i in range(5000)}
    entry = DataLock(fingerprint="ab" * 32, classes=("a", "b"), clips=len(files), files=files)
    lock = Lock(data={"folder:clips": entry, "folder:other": entry}, weights={"other": "00"})
    plan = next(iter(compile_experiment(load_experiment(tmp_path / "s.yaml"), lock).cells.values()))
    runtime = Runtime(root=str(tmp_path))
    for stage in plan.stages:
        path = tmp_path / "request.json"
        path.write_text(StageRequest.of(plan, stage, runtime).model_dump_json(), "utf-8")
        assert path.stat().st_size < 40_000
        graph = StageRequest.read(path).graph
        assert graph.lock == Lock(data={"folder:clips": entry})
        assert [s.identity for s in graph.stages] == [s.identity for s in plan.closure(stage)]
    (made,) = (tmp_path / "store" / ".lists").iterdir()
    assert read_record(made.read_bytes()) == ({"files": files}, True)


# ---------------------------------------------------------------- start-up

IMPORTS = "import sys; sys.argv = ['stagedkd', *{arguments}]\nfrom stagedkd.cli import main\ntry:\n    main()\nexcept SystemExit: pass\n"
LOADED = "print(sorted({'torch', 'torchvision', 'torch._dynamo', 'av'} & sys.modules.keys()))"


def loaded(code: str, folder: Path) -> list[str]:
    """What a child process has loaded at its end."""
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1].replace("'", '"'))


RUN = """
import shutil, sys
from pathlib import Path
from stagedkd.experiment.run import locked_plan, run_stage
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.load import load_spec
from stagedkd.stages.context import Silent
runtime = load_runtime(Path())
plan = locked_plan(load_spec(sys.argv[1]), runtime, Silent())
for name in sys.argv[2:]:
    shutil.rmtree(Path("store") / plan.stage(name).folder, ignore_errors=True)
    assert run_stage(plan, plan.stage(name), runtime, Silent())[1]
"""


def stages_load(folder: Path, spec: str, *names: str) -> list[str]:
    """What a child process has loaded after it has made these stages of a spec."""
    return loaded(f"import sys; sys.argv = {['x', spec, *names]!r}\n{RUN}\n{LOADED}", folder)


def test_stages_that_do_not_train_load_no_torchvision(project: Path, stagedkd: Command) -> None:
    (project / "params.yaml").write_text("runtime: {device: cpu, threads: 1}\n", "utf-8")
    assert stagedkd("run", "specs/tiny.yaml").returncode == 0
    assert stages_load(project, "specs/tiny.yaml", "data", "labels") == []
    assert "torchvision" not in stages_load(project, "specs/tiny.yaml", "evaluate-student")  # FLOPs load the compiler


def test_preparing_videos_loads_no_torchvision_and_no_compiler(project: Path) -> None:
    for i in range(8):
        write_video(project / "data" / "own" / "ab"[i % 2] / f"{i}.avi", 6)
    text = TINY.replace(TINY.splitlines()[0], "data: {kind: folder, path: own, folds: 3, val_folds: 1, test_folds: 1}")
    (project / "specs" / "own.yaml").write_text(text, "utf-8")
    (project / "params.yaml").write_text("runtime: {device: cpu, data_dir: data}\n", "utf-8")
    assert stages_load(project, "specs/own.yaml", "data", "labels") == ["av", "torch"]


def test_check_loads_no_torch(project: Path) -> None:
    code = IMPORTS.format(arguments=["check", "specs/tiny.yaml"]) + LOADED
    assert loaded(code, project) == []
