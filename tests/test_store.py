"""The store shared by several runs, looked after, and results made anew from their manifests."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stagedkd import compile_plan, load_spec
from stagedkd.errors import LockError, StoreError, UsageError
from stagedkd.files import read_record, record_text
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.graph import Plan, Stage
from stagedkd.plan.key import Key
from stagedkd.plan.lock import Lock
from stagedkd.spec.load import load_experiment
from stagedkd.store import maintenance, verify
from stagedkd.store.leases import Owner, try_acquire
from stagedkd.store.manifest import manifest_of, upstream_digests
from stagedkd.store.records import record, records
from stagedkd.store.runlog import event_line, read_run_log
from stagedkd.store.store import Store, Workspace
from tests.conftest import OWN_NET, TINY, Command
from tests.tools import file_bytes, files_of

SHORT = (
    TINY.replace("cascade: [0.5]", "cascade: []").replace("epochs: 3", "epochs: 1").replace("epochs: 2", "epochs: 1")
)
QUICK = ["--set", "cascade=[]", "--set", "teacher.epochs=1", "--set", "distill.phases.joint.epochs=1"]


def publish(store: Store, plan: Plan, *stages: Stage) -> None:
    """Artifacts of one small file each, without the work."""
    for stage in stages:
        with store.held(stage, lambda: None) as lease:
            workspace = store.open(stage, lease)
            (workspace.files / "some.json").write_text(f'"{stage.name}"\n', "utf-8")
            store.publish(stage, workspace, manifest_of(plan, stage), {"started": time.time(), "seconds": 1.0}, lease)


@pytest.fixture
def tiny(project: Path) -> tuple[Store, Plan]:
    """A store with an artifact for every stage of the tiny spec."""
    store, plan = Store(project / "store", 60), compile_plan(load_spec("specs/tiny.yaml"))
    publish(store, plan, *plan.stages)
    return store, plan


# ---------------------------------------------------------------- leases and publication


def lose(workspace: Workspace) -> None:
    """As if another had taken the lease over."""
    (place,) = workspace.files.parents[3].joinpath(".leases").glob("*-*")
    (file,) = place.iterdir()
    file.rename(place / "60_elsewhere_0123_1_1_another")


def test_who_lost_the_lease_publishes_nothing(project: Path) -> None:
    store, plan = Store(project / "store"), compile_plan(load_spec("specs/tiny.yaml"))
    stage = plan.stage("data")
    with (
        pytest.raises(StoreError, match=r"another run took this stage over \(process 1 on elsewhere\)"),
        store.held(stage, lambda: None) as lease,
    ):
        workspace = store.open(stage, lease)
        lose(workspace)
        store.publish(stage, workspace, manifest_of(plan, stage), {}, lease)
    assert store.state(stage) == "miss"


def test_what_fails_after_a_lost_lease_is_told_as_that(project: Path) -> None:
    store, stage = Store(project / "store"), compile_plan(load_spec("specs/tiny.yaml")).stage("data")
    with pytest.raises(StoreError, match="another run took") as caught, store.held(stage, lambda: None) as lease:
        workspace = store.open(stage, lease)
        lose(workspace)
        raise FileNotFoundError("what the other renamed")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_the_first_publication_stays(tiny: tuple[Store, Plan]) -> None:
    store, plan = tiny
    stage = plan.stage("labels")
    before = file_bytes(store.root / stage.folder)
    with store.held(stage, lambda: None) as lease:
        workspace = store.open(stage, lease)
        (workspace.files / "some.json").write_text("another\n", "utf-8")
        found = store.publish(stage, workspace, manifest_of(plan, stage), {}, lease)
    assert file_bytes(found.folder) == before and not list((store.root / ".work").iterdir())


@pytest.mark.parametrize("remains", ["run.json", "files/half.bin"])
def test_remains_that_are_no_artifact_make_room(tiny: tuple[Store, Plan], remains: str) -> None:
    store, plan = tiny
    stage = plan.stage("labels")
    folder = store.root / stage.folder
    shutil.rmtree(folder)
    (folder / remains).parent.mkdir(parents=True)
    (folder / remains).write_text("left", "utf-8")
    publish(store, plan, stage)
    store.artifact(stage).verify()
    assert not (folder / "files/half.bin").exists() and not list((store.root / ".trash").iterdir())


def test_who_takes_over_gets_the_checkpoint_and_nothing_that_the_other_has_open(project: Path) -> None:
    store, stage = Store(project / "store"), compile_plan(load_spec("specs/tiny.yaml")).stage("teacher")
    with store.held(stage, lambda: None) as lease:
        first = store.open(stage, lease)
        (first.scratch / "checkpoint.pt").write_bytes(b"kept")
        stale = (first.scratch / "checkpoint.pt.tmp").open("wb")
    assert store.state(stage) == "resumable"
    with store.held(stage, lambda: None) as lease:
        second = store.open(stage, lease)
        (second.scratch / "checkpoint.pt.tmp").write_bytes(b"mine")
        with stale:
            stale.write(b"of one who came back")
        assert (second.scratch / "checkpoint.pt").read_bytes() == b"kept" and not first.scratch.exists()
        assert (second.scratch / "checkpoint.pt.tmp").read_bytes() == b"mine"


# ---------------------------------------------------------------- several runs at once

GRIDS = {
    "a": "{seeds: 2}",
    "b": "{axes: {student: {w4: {width: 4}, w6: {width: 8}}}}",
    "c": "{seeds: 2, axes: {student: {w4: {width: 4}, w6: {width: 8}}}}",
    "d": "{seeds: 3}",
}


@pytest.mark.slow
def test_what_another_run_is_at_comes_last(project: Path) -> None:
    """The first cell's student is held by somebody until the second cell is done: nobody waits for it before that."""
    from stagedkd.experiment.run import run_experiment
    from stagedkd.stages.context import Silent

    (project / "specs/tiny.yaml").write_text(SHORT, "utf-8")
    (project / "specs/g.yaml").write_text("extends: tiny.yaml\ngrid: {seeds: 2}\n", "utf-8")
    experiment = load_experiment("specs/g.yaml")
    first, second = compile_experiment(experiment, Lock()).cells.values()
    lease = try_acquire(project / "store/.leases" / f"distill-{first.stage('student').key}")
    assert lease is not None
    said: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            said.append(text)

        def finished(self, stage: Stage, seconds: float) -> None:
            said.append(stage.identity)
            if stage.identity == second.stage("evaluate-student").identity:
                lease.end()

    outcome = run_experiment(experiment, listener=Told())
    assert not outcome.failed and list(outcome.finished) == ["seed=0", "seed=1"]
    assert said.count("student is being made by another run; continuing with cells that do not need it") == 1
    assert said.index(second.stage("evaluate-student").identity) < said.index(first.stage("student").identity)
    made = [text for text in said if text in {stage.identity for plan in (first, second) for stage in plan.stages}]
    assert len(made) == len(set(made))
    assert set(outcome.finished["seed=0"].ran) == {stage.name for stage in first.stages}


@pytest.mark.slow
def test_four_runs_of_overlapping_grids_train_each_stage_once(project: Path, stagedkd: Command) -> None:
    (project / "specs/tiny.yaml").write_text(SHORT, "utf-8")
    for name, grid in GRIDS.items():
        (project / f"specs/{name}.yaml").write_text(f"extends: tiny.yaml\ngrid: {grid}\n", "utf-8")
    (project / "params.yaml").write_text("runtime: {device: cpu, threads: 1}\n", "utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "stagedkd.cli", "run", f"specs/{name}.yaml"],
            cwd=project,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for name in GRIDS
    ]
    said = [process.communicate(timeout=900)[1] for process in runs]
    assert [process.returncode for process in runs] == [0] * 4, said
    unique = {
        stage["key"]
        for name in GRIDS
        for cell in json.loads(stagedkd("plan", f"specs/{name}.yaml", "--json").stdout)["cells"]
        for stage in cell["stages"]
    }
    assert len(re.findall(r": done in", "".join(said))) == len(unique) == len(list((project / "store").glob("*-*")))
    verified = stagedkd("store", "verify")
    assert verified.returncode == 0 and f"{len(unique)} artifacts are intact" in verified.stdout
    assert not list((project / "store/.leases").iterdir()) and not list((project / "store/.work").iterdir())


@pytest.mark.slow
def test_a_frozen_holder_that_wakes_up_publishes_nothing(project: Path) -> None:
    (project / "params.yaml").write_text(
        "runtime: {device: cpu, threads: 1, checkpoint_seconds: 0, lease_seconds: 2}\n", "utf-8"
    )
    command = [sys.executable, "-m", "stagedkd.cli", "run", "specs/tiny.yaml", *QUICK, "--set", "teacher.epochs=40"]
    frozen = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list((project / "store").glob(".work/teach-*/checkpoint.pt")):
        assert time.monotonic() < deadline and frozen.poll() is None
        time.sleep(0.01)
    frozen.send_signal(signal.SIGSTOP)
    other = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=600, check=False)
    assert other.returncode == 0, other.stderr
    before = file_bytes(project / "store")
    own = {name for name in before if name.startswith(".leases/run-")}  # of the frozen run as a whole
    frozen.send_signal(signal.SIGCONT)
    _, errors = frozen.communicate(timeout=200)
    assert frozen.returncode == 1 and "another run took this stage over" in errors and "Traceback" not in errors
    after = file_bytes(project / "store")
    assert len(own) == 1 and after == {name: content for name, content in before.items() if name not in own}
    assert maintenance.artifacts(Store(project / "store")) and not list((project / "store/.leases").iterdir())
    again = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0 and "nothing to do" in again.stderr


# ---------------------------------------------------------------- store ls, du, verify, why, gc


def test_store_commands_load_no_torch(tiny: tuple[Store, Plan], project: Path) -> None:
    student = tiny[1].stage("student").identity
    calls = [["ls"], ["ls", "--json"], ["du"], ["verify"], ["gc", "--dry-run"], ["why", student[:8], "specs/tiny.yaml"]]
    probe = (
        "import sys; from stagedkd import cli\n"
        f"for call in {calls!r}:\n"
        "    sys.argv = ['stagedkd', 'store', *call]\n"
        "    cli.main()\n"
        "assert not {'torch', 'torchvision', 'matplotlib', 'dvc', 'av'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", probe], cwd=project, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert re.search(rf"distill +{student.short} .* tiny", found.stdout) and "10 artifacts are intact" in found.stdout
    assert "teacher: distill" in found.stdout and "student of tiny: the same" in found.stdout
    assert "assistant-1 of tiny: different, arch.width 4 -> 6, teacher.width 6 -> 8" in found.stdout


def test_why_names_the_field_of_a_miss(tiny: tuple[Store, Plan], project: Path, stagedkd: Command) -> None:
    (project / "specs/hot.yaml").write_text("extends: tiny.yaml\nstudent: {train: {lr: 0.5}}\n", "utf-8")
    key = str(compile_plan(load_spec("specs/hot.yaml")).stage("student").key)
    assert "lr 0.01 -> 0.5" in stagedkd("store", "why", f"distill-{key[:10]}").stdout
    nothing = stagedkd("store", "why", "ffffffffffff")
    assert nothing.returncode == 2 and "stagedkd store ls" in nothing.stderr


def test_verify_names_what_is_broken(tiny: tuple[Store, Plan], stagedkd: Command) -> None:
    store, plan = tiny
    folders = [store.root / plan.stage(name).folder for name in ("data", "labels", "teacher", "student", "assistant-1")]
    (folders[0] / "files/some.json").write_text("changed", "utf-8")
    (folders[1] / "files/more.json").write_text("more", "utf-8")
    (folders[2] / "files/some.json").unlink()
    (folders[3] / "files/manifest.json").write_text("{", "utf-8")
    manifest = folders[4] / "files/manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"lr": 0.01', '"lr": 0.02'), "utf-8")
    found = stagedkd("store", "verify")
    assert found.returncode == 1 and "5 of 10 artifacts are broken" in found.stderr and "Traceback" not in found.stderr
    for words in (
        "is not what was published",
        "more.json is not in the manifest",
        "some.json is missing",
        "manifest.json cannot be read",
        "manifest.json was changed after it was written",
    ):
        assert words in found.stderr, words


def publish_over(store: Store, plan: Plan, *names: str) -> None:
    """Artifacts that have metrics, and the inputs that the store holds."""
    for name in names:
        stage = plan.stage(name)
        inputs = [store.artifact(above).manifest for above in plan.inputs(stage).values()]
        shutil.rmtree(store.root / stage.folder)
        with store.held(stage, lambda: None) as lease:
            update = {"metrics": {"top1": 0.75, "per_class": {"a": 1.0}}, "inputs": upstream_digests(inputs)}
            manifest = manifest_of(plan, stage).model_copy(update=update)
            store.publish(stage, store.open(stage, lease), manifest, {"started": 0.0, "seconds": 1.0}, lease)


def test_a_metric_edited_in_a_manifest_is_refused_and_found(tiny: tuple[Store, Plan], stagedkd: Command) -> None:
    store, plan = tiny
    publish_over(store, plan, "teacher", "evaluate-teacher")
    path = store.root / plan.stage("evaluate-teacher").folder / "files/manifest.json"
    assert store.artifact(plan.stage("evaluate-teacher")).manifest.metrics["top1"] == 0.75
    whole = path.read_text("utf-8")
    path.write_text(whole.replace('"top1": 0.75', '"top1": 0.95'), "utf-8")
    with pytest.raises(StoreError, match=r"manifest\.json was changed after it was written") as caught:
        store.artifact(plan.stage("evaluate-teacher"))
    assert f"remove {path.parent.parent}" in caught.value.hint
    assert "was changed after it was written" in stagedkd("store", "verify").stderr
    values = json.loads(whole)
    del values["digest"]
    path.write_text(json.dumps(values), "utf-8")  # as an earlier version wrote it
    assert store.artifact(plan.stage("evaluate-teacher")).manifest.metrics["top1"] == 0.75
    found = stagedkd("store", "verify")
    assert found.returncode == 0 and found.stdout.count("have no digest") == 1


def test_a_manifest_written_anew_is_found_by_what_was_made_of_it(
    tiny: tuple[Store, Plan], project: Path, stagedkd: Command
) -> None:
    store, plan = tiny
    publish_over(store, plan, "teacher", "assistant-1", "student")
    assert stagedkd("store", "verify").returncode == 0
    teacher, student = plan.stage("teacher"), store.artifact(plan.stage("student")).manifest
    path = store.root / teacher.folder / "files/manifest.json"
    values, _ = read_record(path.read_bytes())
    values["metrics"]["top1"] = 0.95
    path.write_text(record_text(values), "utf-8")
    found = stagedkd("store", "verify")
    assert found.returncode == 1 and "2 of 10 artifacts are broken" in found.stderr
    assert f"{student.folder}: it was made of {teacher.folder}, which was changed or made anew" in found.stderr
    shown = stagedkd("store", "why", student.key[:12]).stdout
    assert f"teach {teacher.identity.short}, digest {student.inputs[teacher.identity][:12]}" in shown


def test_verify_names_damage_that_costs_no_artifact(tiny: tuple[Store, Plan], project: Path, stagedkd: Command) -> None:
    store, plan = tiny
    run = store.root / plan.stage("teacher").folder / "run.json"
    run.write_text(run.read_text("utf-8").replace('"seconds": 1.0', '"seconds": 9.0'), "utf-8")
    assert store.artifact(plan.stage("teacher")).run is None
    with store.held(changed(project, store).stage("student"), lambda: None) as lease:
        pass
    scratch = store.root / ".work" / f"teach-{'0' * 64}.x"
    scratch.mkdir(parents=True)
    (scratch / "checkpoint.pt").write_bytes(b"none of ours")
    (scratch / "events.jsonl").write_text(
        event_line({"event": "epoch", "step": 1}).replace("1", "2", 1) + "\n", "utf-8"
    )
    mark = record(store.root, "mine", ["a" * 64])
    path = store.root / ".runs" / f"{mark}.json"
    path.write_text(path.read_text("utf-8").replace("a", "b", 1), "utf-8")
    (project / "cache/0123").mkdir(parents=True)
    (project / "cache/0123/shard-00000.json").write_text('{"bytes": {}, "clip": {}}', "utf-8")
    (project / "cache/hashes.json").write_text("{", "utf-8")
    found = stagedkd("store", "verify")
    assert found.returncode == 1 and "6 other files are damaged" in found.stderr and "broken" not in found.stderr
    for name in (run, scratch / "checkpoint.pt", path, "shard-00000.json", "hashes.json"):
        assert str(name) in found.stderr, name
    assert lease.lost is False and not records(store.root)


def test_verify_raises_no_alarm_for_what_a_clean_up_removes_meanwhile(
    tiny: tuple[Store, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = tiny
    folder, digest = store.root / plan.stage("teacher").folder, verify.file_digest

    def racing(path: Path) -> str:
        if folder in path.parents and folder.exists():
            store.discard(folder)
        return digest(path)

    monkeypatch.setattr(verify, "file_digest", racing)
    assert not verify.verify(store).broken and not folder.exists()


def test_flipped_bits_are_never_read_as_other_numbers(tiny: tuple[Store, Plan], tmp_path: Path) -> None:
    """Each flip in a manifest, in run.json and in the events is an error, is left out, or changes no value."""
    store, plan = tiny
    publish_over(store, plan, "teacher")
    stage, dice = plan.stage("teacher"), random.Random(0)
    folder = store.root / stage.folder
    lines = [event_line({"event": "epoch", "losses": {"ce": i / 7}}) for i in range(5)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    manifest, log = store.artifact(stage).manifest, read_run_log(folder)
    assert log.run is not None and len(log.events) == 5
    for name in ("files/manifest.json", "run.json", "events.jsonl"):
        content = (folder / name).read_bytes()
        for _ in range(150):
            broken, place = bytearray(content), dice.randrange(8 * len(content))
            broken[place // 8] ^= 1 << place % 8
            (folder / name).write_bytes(broken)
            try:
                assert store.artifact(stage).manifest == manifest
            except StoreError:
                continue
            damaged = read_run_log(folder)
            assert damaged.run is None or damaged.run.items() >= log.run.items()
            assert all(event in log.events for event in damaged.events)
        (folder / name).write_bytes(content)


def changed(project: Path, store: Store) -> Plan:
    """Publish the tiny spec with another student, as a run with --set leaves it."""
    plan = compile_plan(load_spec("specs/tiny.yaml", ["student.width=5", "control=null"]))
    publish(store, plan, *(stage for stage in plan.stages if store.state(stage) == "miss"))
    return plan


def test_gc_keeps_what_specs_dvc_and_runs_need(tiny: tuple[Store, Plan], project: Path, stagedkd: Command) -> None:
    store, plan = tiny
    before = {stage.folder for stage in plan.stages}
    other = changed(project, store)
    extra = {stage.folder for stage in other.stages} - before
    assert len(extra) == 2  # the student and its evaluation

    def there() -> set[str]:
        return {path.name for path in store.root.glob("*-*")}

    shown = stagedkd("store", "gc", "--dry-run")
    assert shown.returncode == 0 and "would delete 2" in shown.stdout and there() == before | extra
    assert "there was no answer" in stagedkd("store", "gc").stderr and there() == before | extra
    record(store.root, "tiny+lr", [str(stage.key) for stage in other.stages])
    assert "nothing to delete" in stagedkd("store", "gc", "--yes").stdout
    assert "would delete 2" in stagedkd("store", "gc", "--dry-run", "--runs", "0").stdout
    (evaluation,) = (name for name in extra if name.startswith("evaluate"))
    lock = f"schema: '2.0'\nstages:\n  one:\n    cmd: x\n    outs:\n    - path: store/{evaluation}/files\n      md5: 0.dir\n"
    (project / "dvc.lock").write_text(lock, "utf-8")
    kept = stagedkd("store", "gc", "--yes", "--runs", "0")
    assert "nothing to delete" in kept.stdout, kept.stdout  # what an out was made of is needed with it
    (project / "dvc.lock").write_text("stages: [", "utf-8")
    assert stagedkd("store", "gc", "--yes", "--runs", "0").returncode == 1
    (project / "dvc.lock").unlink()
    (project / "specs/wrong.yaml").write_text("extends: tiny.yaml\nstudent: {widht: 3}\n", "utf-8")
    assert stagedkd("store", "gc", "--yes", "--runs", "0").returncode == 2 and there() == before | extra
    (project / "specs/wrong.yaml").write_text("distill: {phases: {joint: {epochs: 1, losses: {ce: 1}}}}\n", "utf-8")
    gone = stagedkd("store", "gc", "--yes", "--runs", "0")  # that one is a recipe
    assert gone.returncode == 0 and "deleted 2" in gone.stdout and there() == before, gone.stderr


def test_gc_leaves_what_a_run_holds_or_has_just_asked_for(tiny: tuple[Store, Plan], project: Path) -> None:
    store, plan = tiny
    keys = [stage.identity for stage in plan.stages]
    student = plan.stage("student")
    assert {entry.folder.name for entry in maintenance.unreferenced(store, [], set(), 0)} == {
        stage.folder for stage in plan.stages
    }
    lease = try_acquire(store.root / ".leases" / f"distill-{student.key}")
    assert lease is not None
    found = {entry.folder.name for entry in maintenance.unreferenced(store, [], set(), 0)}
    assert not found & {stage.folder for stage in plan.closure(student)}
    assert plan.stage("control-ce").folder in found
    record(store.root, "tiny", keys)  # the run that holds the lease needs more than the stage at which it is
    assert maintenance.unreferenced(store, [], set(), 0) == []
    lease.end()
    known, entries, said = records(store.root), maintenance.unreferenced(store, [], set(), 0), list[str]()
    assert len(entries) == 10
    os.utime(next((store.root / ".runs").iterdir()), (1, 1))  # another time: the run was started again
    assert list(maintenance.delete(store, entries, known, said.append)) == [] and len(said) == 10
    shutil.rmtree(store.root / ".runs")
    lease = try_acquire(store.root / ".leases" / f"distill-{student.key}")
    assert lease is not None
    gone = list(maintenance.delete(store, entries, known, said.append))
    assert [entry.folder for entry in maintenance.artifacts(store)] == [store.root / student.folder] and len(gone) == 9
    assert said[-1] == f"{student.folder} stays: a run holds it"
    lease.end()


def test_a_killed_gc_leaves_no_half_artifact(tiny: tuple[Store, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    store, plan = tiny
    stage = plan.stage("student")

    def killed(folder: Path, **_: object) -> None:
        (folder / "files/manifest.json").stat()
        (folder / "files/some.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.discard(store.root / stage.folder)
    monkeypatch.undo()
    assert store.state(stage) == "miss" and stage.key not in {m.key for m in store.manifests()}
    keys = [s.identity for s in plan.stages]
    (left,) = maintenance.unreferenced(store, keys, set(), 0)
    assert left.part == "trash" and list(maintenance.delete(store, [left], [], print)) == [left]
    assert not list((store.root / ".trash").iterdir())


def test_gc_keeps_checkpoints_that_are_needed(tiny: tuple[Store, Plan]) -> None:
    store, plan = tiny
    wanted, done, alien = (plan.stage(name) for name in ("student", "teacher", "control-ce"))
    shutil.rmtree(store.root / wanted.folder)
    shutil.rmtree(store.root / alien.folder)
    for stage in (wanted, done, alien):
        with store.held(stage, lambda: None) as lease:
            (store.open(stage, lease).scratch / "checkpoint.pt").write_bytes(b"x")
    keys = [stage.identity for stage in plan.stages if stage != alien and stage.name != "evaluate-control-ce"]
    going = {entry.name for entry in maintenance.unreferenced(store, keys, set(), 0) if entry.part == "attempt"}
    assert going == {done.folder, alien.folder}  # of one the artifact is there, the other nobody needs


def test_gc_leaves_what_living_runs_need(tiny: tuple[Store, Plan]) -> None:
    """Also between two stages, when no lease of a stage is held, and the folder in which Parsl is at work."""
    store, plan = tiny
    student = plan.stage("student")
    needed = {stage.folder for stage in plan.closure(student)}
    (store.root / ".work/parsl-dead-run").mkdir(parents=True)
    with store.at_work("", [stage.identity for stage in plan.closure(student)]) as mark:
        (store.root / f".work/parsl-{mark}").mkdir()
        found = maintenance.unreferenced(store, [], set(), 0)
        assert {entry.folder.name for entry in found if not entry.part} == {s.folder for s in plan.stages} - needed
        assert [entry.folder.name for entry in found if entry.part] == ["parsl-dead-run"]
        maintenance.remove_stale(store)
        assert [run.mark for run in records(store.root)] == [mark.partition("-")[0]]
        published = store.root / f".work/{student.work.kind}-{student.identity}.killed"
        (published / "artifact").mkdir(parents=True)
        killed = [
            store.root / f".work/{kind}-{mark.partition('-')[0]}-killed" for kind in ("jobs", "parsl", "rehearsal")
        ]
        dead, own = Owner(1, "here", Owner.new(1).machine, 2**22 + 1, 0, "t").name, mark.partition("-")[0]
        killed += [store.root / f".leases/run-{own}-killed", store.root / ".leases/run-other-killed"]
        for folder in killed:
            folder.mkdir()
        for lease in killed[-2:]:
            (lease / dead).touch()
    assert not published.exists()
    assert not any(folder.exists() for folder in killed)  # and those of other runs stay, as does its own with its logs
    assert {path.name for path in store.root.glob(".work/parsl-*")} == {"parsl-dead-run", f"parsl-{mark}"}
    assert len([entry for entry in maintenance.unreferenced(store, [], set(), 9) if not entry.part]) == len(plan.stages)
    (store.root / ".leases/.new-gone").mkdir()
    (store.root / ".leases/.new-gone" / dead).touch()
    maintenance.remove_stale(store)
    assert records(store.root) == [] and not list((store.root / ".leases").iterdir())


def test_a_store_that_changes_is_looked_at(tmp_path: Path) -> None:
    """Folders that vanish while they are walked are no fault."""
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            for name in "abc":
                (tmp_path / name / "deep").mkdir(parents=True)
                (tmp_path / name / "deep" / "x.pt").touch()
            for name in "abc":
                shutil.rmtree(tmp_path / name)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            maintenance.folder_size(tmp_path)
    finally:
        over.set()
        thread.join()


def test_what_cannot_be_written_is_said(project: Path, stagedkd: Command) -> None:
    (project / "afile").write_text("", "utf-8")
    found = stagedkd("run", "specs/tiny.yaml", "--store", "afile")
    assert found.returncode == 1 and "cannot write to the store" in found.stderr and "Traceback" not in found.stderr


def test_a_lost_lease_says_what_is_known(tmp_path: Path) -> None:
    place = tmp_path / "teach-1"
    lease, other = try_acquire(place), Owner.new(60)
    assert lease is not None
    (place / lease.owner.name).rename(place / other.name)
    with pytest.raises(StoreError, match=rf"took this stage over \(process {os.getpid()}"):
        lease.require()
    shutil.rmtree(place)
    with pytest.raises(StoreError, match="somebody removed"):
        lease.require()
    lease.end()


@pytest.mark.slow
def test_results_are_those_of_the_spec_as_it_is(project: Path, stagedkd: Command) -> None:
    """A spec that is edited and set back finds everything in the store, and results/ are its own again."""
    from stagedkd.experiment.reproduce import find_target

    results = project / "results/tiny"
    for rate in ("1e-2", "2e-2", "1e-2"):
        (project / "specs/tiny.yaml").write_text(SHORT.replace("lr: 1e-2", f"lr: {rate}"), "utf-8")
        found = stagedkd("run", "specs/tiny.yaml", "--no-dvc")
        assert found.returncode == 0, found.stderr
    assert "done in" not in found.stderr
    plan = compile_plan(load_spec("specs/tiny.yaml"))
    said = json.loads((results / "metrics.json").read_text("utf-8"))
    assert said["stages"] == {stage.name: stage.key for stage in plan.stages}
    weights = project / "store" / plan.stage("student").folder / "files/student.safetensors"
    assert (results / "student.safetensors").read_bytes() == weights.read_bytes()
    (project / "specs/tiny.yaml").write_text(SHORT.replace("lr: 1e-2", "lr: 2e-2"), "utf-8")
    other = compile_plan(load_spec("specs/tiny.yaml"))
    record(project / "store", "tiny", [str(stage.key) for stage in other.stages])  # the last run, without a report
    ends = {manifest.key for manifest in find_target(results, Store(project / "store")).manifests}
    assert plan.stage("evaluate-student").key in ends and other.stage("evaluate-student").key not in ends


# ---------------------------------------------------------------- reproduce


@pytest.mark.slow
def test_a_run_is_made_anew_from_its_manifests(project: Path, stagedkd: Command) -> None:
    from stagedkd.experiment.reproduce import check_files, graph_of, manifest_in
    from stagedkd.plan.runtime import load_runtime

    (project / "nets").mkdir()
    (project / "nets/own.py").write_text(OWN_NET, "utf-8")
    own = "student: {arch: file, path: nets/own.py, substages: [[stem], [mid]]}"
    text = SHORT.replace(
        "student: {arch: resnet3d, width: 4, blocks: [1, 1], substages: [[stem, layer1], [layer2]]}", own
    )
    (project / "specs/own.yaml").write_text(text, "utf-8")
    assert stagedkd("run", "specs/own.yaml", "--threads", "2").returncode == 0
    (project / "specs").rename(project / "away")
    before = files_of(project / "store")
    whole = stagedkd("reproduce", "results/own", "--store", "again")  # params.yaml says one thread
    assert whole.returncode == 0 and "equal bit for bit" in whole.stdout, whole.stderr
    assert files_of(project / "again") == before == files_of(project / "store")
    runs = [json.loads(path.read_text("utf-8")) for path in sorted((project / "again").glob("*/run.json"))]
    assert {run["threads"] for run in runs if "threads" in run} == {2} and all(run["packages"]["torch"] for run in runs)

    (student,) = (project / "store").glob("distill-*")
    weights = student / "files/student.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x40
    weights.write_bytes(content)
    run, _ = read_record((student / "run.json").read_bytes())
    run["packages"]["torch"], run["code"] = "1.0", "old"
    (student / "run.json").write_text(record_text(run), "utf-8")
    tampered = stagedkd("reproduce", f"store/{student.name}", "--threads", "2")
    assert tampered.returncode == 1 and "Traceback" not in tampered.stderr
    assert re.search(
        r"student.safetensors: 1 of \d+ tensors differ, by .*changed after it was published", tampered.stderr
    )
    assert "torch: 1.0 there" in tampered.stderr and "code: old there" in tampered.stderr

    (project / "nets/own.py").write_text(OWN_NET + "\n# changed\n", "utf-8")
    with pytest.raises(LockError, match=r"nets/own.py differs from the file of the original"):
        check_files(graph_of([manifest_in(project / "results/own/student.safetensors")]), load_runtime(project))


def test_reproduce_refuses_what_it_cannot_trust(tiny: tuple[Store, Plan], project: Path) -> None:
    from stagedkd.experiment.reproduce import check_files, find_target, graph_of, manifest_in
    from stagedkd.plan.runtime import load_runtime
    from stagedkd.plan.work import DistillWork
    from stagedkd.spec.schema.networks import FileArch

    store, plan = tiny
    for what, words in ((project / "nowhere", "does not exist"), (project / "specs", "not a result")):
        with pytest.raises(UsageError, match=words):
            find_target(what, store)
    with pytest.raises(StoreError, match="not a safetensors file"):
        manifest_in(project / "params.yaml")
    folder = store.root / plan.stage("student").folder
    (manifest,) = find_target(folder, store).manifests
    graph = graph_of([manifest])
    assert {s.key for s in graph.stages} == {s.key for s in plan.closure(plan.stage("student"))}
    assert [s.name for s in graph.closure(graph.stages[-1])] == [s.name for s in graph.stages]  # in order
    path = folder / "files/manifest.json"
    values, _ = read_record(path.read_bytes())
    path.write_text(json.dumps(values).replace('"lr": 0.01', '"lr": 0.02'), "utf-8")
    with pytest.raises(StoreError, match="is not the key of the work"):
        find_target(folder, store)
    work = plan.stage("student").work
    assert isinstance(work, DistillWork)
    for own, error, words in (
        ("nets/own.py", UsageError, "is missing"),
        ("../own.py", UsageError, "outside the project"),
    ):
        arch = FileArch(arch="file", path=own, digest="0" * 64)
        stage = Stage("student", work.model_copy(update={"arch": arch}), {}, Key("0" * 64))
        with pytest.raises(error, match=words):
            check_files(replace(graph, stages=(stage,)), load_runtime(project))


@pytest.mark.slow
def test_reproduce_wants_the_data_that_were_locked(project: Path) -> None:
    from stagedkd import run
    from stagedkd.experiment.reproduce import check_files, graph_of, reproduce
    from stagedkd.plan.runtime import load_runtime
    from stagedkd.stages.context import Silent
    from tests.videos import write_video

    rows = [f"{label}{i}.avi,{label},g{i}" for label in ("ab", "cd") for i in range(6)]
    for row in rows:
        write_video(project / "data/set" / row.split(",")[0], 6, noisy=row[0] == "a")
    (project / "data/set/clips.csv").write_text("\n".join(["path,label,group", *rows]) + "\n", "utf-8")
    shapes = "kind: shapes, classes: 4, train: 48, val: 16, test: 16"
    text = SHORT.replace(shapes, "kind: csv, path: set/clips.csv, folds: 3, test_folds: 0")
    (project / "specs/real.yaml").write_text(text, "utf-8")
    runtime = load_runtime(project)
    artifacts = run(load_spec("specs/real.yaml"), runtime).artifacts
    shutil.rmtree(project / "cache")
    store, weights = Store(project / "store"), artifacts["student"].file("student.safetensors")
    found = reproduce(weights, store, runtime, project / "again", Silent())
    assert not found.differs and len(found.compared) == 5  # data, labels, teacher, student, and the file itself
    assert found.environment == () and not found.bare
    write_video(project / "data/set/ab1.avi", 9)
    with pytest.raises(LockError, match=r"changed  ab1.avi"):
        check_files(graph_of(Store(project / "store").manifests()), load_runtime(project))
    (project / "stagedkd.lock").unlink()
    with pytest.raises(LockError, match="differ from those of the original"):
        check_files(graph_of(Store(project / "store").manifests()), load_runtime(project))
