"""Whole runs by the real command line: results, repetition, bad input, an intact store."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from stagedkd import load_spec, report, run
from stagedkd.errors import DataError, StoreError
from stagedkd.models.resnet3d import resnet3d
from stagedkd.plan.graph import Stage
from stagedkd.plan.runtime import load_runtime
from stagedkd.stages.context import Silent
from stagedkd.store.manifest import Manifest
from tests.conftest import OWN_NET, REPO, TINY, Command
from tests.tools import file_bytes, files_of
from tests.videos import bad_files, write_video

FAST = ["--set", "cascade=[]", "--set", "teacher.epochs=1", "--set", "distill.phases.joint.epochs=1"]


@pytest.mark.slow
def test_the_same_spec_twice_gives_the_same_bits_and_a_second_run_does_nothing(
    project: Path, stagedkd: Command
) -> None:
    first = stagedkd("run", "specs/tiny.yaml", "--store", "a")
    assert first.returncode == 0, first.stderr
    text = TINY.replace("grow:", "first:")
    (project / "specs" / "renamed.yaml").write_text(text, "utf-8")
    second = stagedkd("run", "specs/renamed.yaml", "--store", "b", "--threads", "1")
    assert second.returncode == 0, second.stderr
    a, b = files_of(project / "a"), files_of(project / "b")
    assert a.keys() == b.keys() and len({name.split("/")[0] for name in a}) == 10
    differing = {name for name in a if a[name] != b[name]}
    # manifests and the weights' metadata keep the user's own phase names; everything else is equal to the bit
    assert all(name.endswith(("manifest.json", ".safetensors")) for name in differing)
    third = stagedkd("run", "specs/tiny.yaml", "--store", "c")
    assert files_of(project / "c") == a and third.returncode == 0
    before = file_bytes(project / "a")
    probe = (
        "import sys; sys.argv = ['stagedkd', 'run', 'specs/tiny.yaml', '--store', 'a']; from stagedkd import cli; cli.main(); "
        "assert not {'torch', 'torchvision', 'matplotlib', 'dvc', 'av'} & set(sys.modules)"
    )
    again = subprocess.run([sys.executable, "-c", probe], cwd=project, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "nothing to do" in again.stderr, again.stderr
    assert file_bytes(project / "a") == before


def test_what_a_run_leaves(project: Path, stagedkd: Command) -> None:
    found = stagedkd("run", "specs/tiny.yaml")
    assert found.returncode == 0, found.stderr
    assert re.search(r"student +\d+\.\d%", found.stdout) and "control-ce" in found.stdout
    assert found.stdout.endswith("try the student: stagedkd predict results/tiny VIDEO\n")
    assert "[3/10] teacher" in found.stderr and "\x1b" not in found.stderr
    metrics = json.loads((project / "results/tiny/metrics.json").read_text("utf-8"))
    for network in (metrics["teacher"], *metrics["assistants"], metrics["student"], metrics["control"]):
        assert 0 <= network["top1"] <= 1 and network["params"] > 0 and network["flops"] > 0
    assert metrics["teacher"]["params"] > metrics["student"]["params"] and metrics["split"] == "val"
    assert metrics["student"]["labelled_clips"] == 36 and metrics["teacher"]["labels"] == "all"
    page = (project / "results/tiny/report.html").read_text("utf-8")
    assert (
        "<svg" in page and "true labels of all training clips" in page and not re.search(r"(src|href)=.https?:", page)
    )
    with safe_open(project / "results/tiny/student.safetensors", "pt") as weights:
        manifest = Manifest.model_validate_json(weights.metadata()["stagedkd"], strict=False)
    plan = json.loads(stagedkd("plan", "specs/tiny.yaml", "--json").stdout)
    keys = {stage["stage"]: stage["key"] for stage in plan["stages"]}
    assert (
        manifest.key == keys["student"]
        and set(manifest.closure) <= set(keys.values())
        and manifest.work.kind == "distill"
    )
    assert {stage["state"] for stage in plan["stages"]} == {"hit"}
    shown = json.loads(stagedkd("show", "specs/tiny.yaml", "--json").stdout)
    assert shown["student"]["top1"] == metrics["student"]["top1"]
    for volatile in [*(project / "store").glob("*/run.json"), *(project / "store").glob("evaluate-*/events.jsonl")]:
        volatile.rename(volatile.with_suffix(".away"))
    pulled = stagedkd("report", "specs/tiny.yaml", "--results", "pulled")
    assert pulled.returncode == 0 and "run.json is missing" in (project / "pulled/tiny/report.html").read_text("utf-8")
    for away in (project / "store").glob("*/*.away"):
        away.rename(away.with_suffix(".json"))
    for log in (project / "store").glob("distill-*/events.jsonl"):
        rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        events = [(row["event"], row["phase"]) for row in rows]
        assert events == [("epoch", "grow.1"), ("epoch", "grow.2"), *[("epoch", "joint"), ("validation", "joint")] * 2]
    volatile = {"run.json", "events.jsonl"}
    for folder in (project / "store").glob("*-*"):
        assert {p.name for p in folder.iterdir()} - volatile == {"files"}, folder
        assert not any(p.suffix in (".pt", ".pkl", ".pth") for p in folder.rglob("*"))


@pytest.mark.slow
def test_plan_says_why_a_stage_is_a_miss(project: Path, stagedkd: Command) -> None:
    first = json.loads(stagedkd("plan", "specs/tiny.yaml", "--json").stdout)["stages"]
    assert {stage["why"] for stage in first} == {"nothing of its kind is stored"}
    assert stagedkd("run", "specs/tiny.yaml", *FAST).returncode == 0
    plan = json.loads(stagedkd("plan", "specs/tiny.yaml", *FAST, "--set", "student.train.lr=0.02", "--json").stdout)
    why = {stage["stage"]: stage["why"] for stage in plan["stages"]}
    assert why["teacher"] == "" and why["evaluate-student"] == "another network"
    assert why["student"] == "phases.0.train.lr 0.01 -> 0.02, phases.1.train.lr 0.01 -> 0.02, and 1 more"
    assert why["control-ce"] == "phase.train.lr 0.01 -> 0.02"


@pytest.mark.slow
def test_a_tampered_artifact_is_refused_and_named(project: Path, stagedkd: Command) -> None:
    assert stagedkd("run", "specs/tiny.yaml", *FAST).returncode == 0
    (weights,) = (project / "store").glob("distill-*/files/student.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = stagedkd("run", "specs/tiny.yaml", *FAST)
    assert found.returncode == 1 and "is not what was published" in found.stderr and "remove" in found.stderr
    assert "Traceback" not in found.stderr
    manifest = weights.parent / "manifest.json"
    manifest.write_text("{}", "utf-8")
    found = stagedkd("run", "specs/tiny.yaml", *FAST)
    assert found.returncode == 1 and "is not a manifest" in found.stderr


BAD = [  # overrides, exit code, words
    (["train.lrr=1"], 2, "did you mean 'lr'?"),
    (["student.width=wide"], 2, "must be a whole number"),
    (["student.substages=[[stem, layer1], [layer7]]"], 2, "there is no block 'layer7'"),
    (["student.substages=[[stem, layer1], [layer1, layer2]]"], 2, "is already in substage 1"),
    (["data={kind: folder, path: nowhere}", "augment={}"], 2, "does not exist"),
    (["teacher.weights=none.safetensors"], 2, "none.safetensors does not exist"),
    (["student={arch: file, path: nets/own.py, substages: [[stem], [middle]]}"], 2, "stem, mid"),
    (["student={arch: file, path: nets/broken.py, substages: [[stem], [mid]]}"], 2, "ZeroDivisionError"),
]


@pytest.mark.parametrize(("overrides", "code", "words"), BAD)
def test_bad_input_is_refused_before_anything_is_run(
    project: Path, stagedkd: Command, overrides: list[str], code: int, words: str
) -> None:
    (project / "nets").mkdir()
    (project / "nets" / "own.py").write_text(OWN_NET, "utf-8")
    (project / "nets" / "broken.py").write_text("1 / 0\n", "utf-8")
    options = [part for override in (*overrides, "cascade=[]") for part in ("--set", override)]
    found = stagedkd("run", "specs/tiny.yaml", *options)
    assert found.returncode == code and words in found.stderr, found.stderr
    assert "Traceback" not in found.stderr
    assert not list((project / "store").glob("*-*"))


OWN_FILES = {
    "nets/own.py": (OWN_NET, ["student={$replace: {arch: file, path: nets/own.py, substages: [[stem], [mid]]}}"]),
    "nets/loss.py": (
        "def loss(student, teacher):\n    return (student - teacher).square().mean()\n",
        ["distill.phases.joint.losses.file={path: nets/loss.py}"],
    ),
    "w.safetensors": ("", ["student.weights=w.safetensors"]),
    "w.csv": (
        "path,weight\n" + "".join(f"shapes:{i},1\n" for i in range(80)),
        ["distill.phases.joint.losses.kd={weigh: {file: w.csv}}"],
    ),
}


@pytest.mark.parametrize("name", ["nets/own.py", *(pytest.param(n, marks=pytest.mark.slow) for n in [*OWN_FILES][1:])])
def test_a_file_edited_while_the_teacher_trains_gets_under_no_key(project: Path, name: str) -> None:
    text, overrides = OWN_FILES[name]
    path = project / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    if not text:
        save_file(resnet3d(4, (1, 1), "full", 4).net.state_dict(), path)
    original = path.read_bytes()

    class Editing(Silent):
        def finished(self, stage: Stage, seconds: float) -> None:
            if stage.name == "teacher":
                path.write_bytes(path.read_bytes().replace(b"1", b"2") + b" ")

    spec = load_spec("specs/tiny.yaml", [*(o for o in FAST if o != "--set"), *overrides])
    with pytest.raises(DataError, match=rf"{path} was changed: it is not the file that the stage's key stands for"):
        run(spec, load_runtime(project), Editing())
    assert list((project / "store").glob("teach-*")) and not list((project / "store").glob("distill-*"))
    path.write_bytes(original)
    ran = run(spec, load_runtime(project)).ran
    assert "student" in ran and "teacher" not in ran


@pytest.mark.slow
def test_a_loss_that_explodes_stops_the_stage_by_name(project: Path, stagedkd: Command) -> None:
    (project / "nets").mkdir()
    (project / "nets" / "own.py").write_text(OWN_NET.replace("nn.BatchNorm3d(width), ", ""), "utf-8")
    wild = "{arch: file, path: nets/own.py, substages: [[stem], [mid]], train: {lr: 99, optimizer: sgd, clip_grad: 0, momentum: 0.99}}"
    found = stagedkd(
        "run", "specs/tiny.yaml", *FAST, "--set", f"student={wild}", "--set", "distill.phases.joint.epochs=9"
    )
    assert found.returncode == 1, found.stderr
    assert re.search(
        r"error: stage student: loss '\w+' is (nan|inf) at phase [\w.]+, epoch \d+, step \d+", found.stderr
    )
    assert "Traceback" not in found.stderr
    assert "hit" in stagedkd("plan", "specs/tiny.yaml", *FAST, "--set", f"student={wild}").stdout


def test_no_space_left_is_an_error_and_the_store_stays_whole(
    project: Path, stagedkd: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagedkd.store import store as module

    spec, runtime = load_spec("specs/tiny.yaml", [o for o in FAST if o != "--set"]), load_runtime(project)
    write, room = module._write, iter([True] * 5)

    def full(path: Path, text: str) -> None:
        if not next(room, False):
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        run(spec, runtime)
    assert "free some space" in caught.value.hint
    monkeypatch.setattr(module, "_write", write)
    outcome = run(spec, runtime)
    assert report(outcome.plan, runtime).student.top1 >= 0
    assert "data" not in outcome.ran  # what was finished stayed


# ---------------------------------------------------------------- real files

REAL = TINY.replace(
    "kind: shapes, classes: 4, train: 48, val: 16, test: 16", "kind: csv, path: set/clips.csv, folds: 3, test_folds: 0"
)


@pytest.fixture
def videos(project: Path) -> Path:
    """Two classes of made videos in six groups, as a csv data set below data/set."""
    rows = [
        {"path": f"{label}{i}.avi", "label": label, "group": f"g{i % 6}"} for label in ("ab", "cd") for i in range(9)
    ]
    folder = project / "data" / "set"
    for row in rows:
        write_video(folder / row["path"], 5 + len(row["path"]), noisy=row["label"] == "ab")
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["path", "label", "group"])
        writer.writeheader()
        writer.writerows(rows)
    (project / "specs" / "real.yaml").write_text(REAL, "utf-8")
    return folder


@pytest.mark.slow
def test_real_files_are_locked_and_changed_ones_named(project: Path, stagedkd: Command, videos: Path) -> None:
    first = stagedkd("run", "specs/real.yaml", *FAST)
    assert first.returncode == 0, first.stderr
    assert "locked data csv:set/clips.csv: 18 clips, 2 classes" in first.stderr
    keys = stagedkd("plan", "specs/real.yaml", *FAST, "--json").stdout
    (videos / "ab1.avi").touch()
    (project / "params.yaml").write_text("runtime: {device: cpu, threads: 2, workers: 5}\n", "utf-8")
    assert stagedkd("plan", "specs/real.yaml", *FAST, "--json").stdout == keys
    assert "nothing to do" in stagedkd("run", "specs/real.yaml", *FAST).stderr
    with (videos / "ab1.avi").open("ab") as stream:
        stream.write(b"more")
    (videos / "cd2.avi").unlink()
    found = stagedkd("run", "specs/real.yaml", *FAST)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "changed  ab1.avi" in found.stderr and "cd2.avi" in found.stderr and "stagedkd lock" in found.stderr
    lock = (project / "stagedkd.lock").read_bytes()
    assert stagedkd("lock", "specs/real.yaml").returncode == 0
    assert (project / "stagedkd.lock").read_bytes() != lock
    (project / "data").rename(project / "gone")  # the raw data may be gone once the store has what is needed
    (project / "stagedkd.lock").write_bytes(lock)
    assert "nothing to do" in stagedkd("run", "specs/real.yaml", *FAST).stderr


@pytest.mark.slow
def test_bad_files_are_listed_and_skipped_up_to_the_limit(project: Path, stagedkd: Command, videos: Path) -> None:
    bad = bad_files(project / "bad")
    for i, name in enumerate(["zero.avi", "cut.avi"]):
        (videos / f"ab{i}.avi").write_bytes((project / "bad" / name).read_bytes()[: 900 if name == "cut.avi" else None])
    found = stagedkd("run", "specs/real.yaml", *FAST)
    assert found.returncode == 0, found.stderr
    assert "bad file ab0.avi: zero bytes" in found.stderr and "bad file ab1.avi: " in found.stderr
    (page,) = (project / "results").glob("real+*/report.html")  # what was --set names the folder
    assert "zero bytes" in page.read_text("utf-8")
    strict = stagedkd("run", "specs/real.yaml", *FAST, "--set", "data.bad_files=strict")
    assert strict.returncode == 1 and "ab0.avi: zero bytes" in strict.stderr
    sources = [project / "bad" / name for name in bad if name != "cut.avi"]
    for i, source in enumerate(path for path in sources if path.is_file()):
        (videos / f"cd{i}.avi").write_bytes(source.read_bytes())
    assert stagedkd("lock", "specs/real.yaml").returncode == 0
    stopped = stagedkd("run", "specs/real.yaml", *FAST)
    assert stopped.returncode == 1 and "of 18 files are bad" in stopped.stderr and "cd0.avi" in stopped.stderr


@pytest.mark.slow
def test_a_class_without_training_clip_is_named(project: Path, stagedkd: Command, videos: Path) -> None:
    text = (videos / "clips.csv").read_text("utf-8") + "cd8x.avi,rare,g9\n"
    write_video(videos / "cd8x.avi")
    (videos / "clips.csv").write_text(
        "path,label,group,split\n"
        + "".join(
            line + (",val\n" if "rare" in line else ",train\n" if ",g0" not in line else ",val\n")
            for line in text.splitlines()[1:]
        ),
        "utf-8",
    )
    found = stagedkd("run", "specs/real.yaml", *FAST)
    assert found.returncode == 1 and "no training clip of class rare" in found.stderr, found.stderr


@pytest.mark.slow
def test_real_clips_from_spec_to_student(project: Path, stagedkd: Command, clips: Path) -> None:
    """The Weizmann clips through every stage, shortened; the figures stand in docs/results.md."""
    (project / "specs" / "weizmann.yaml").write_bytes((REPO / "specs/weizmann.yaml").read_bytes())
    short = ["--set", "teacher.epochs=12", "--set", "student.epochs=8", "--set", "distill.phases.grow.epochs=1"]
    short += ["--set", "train.warmup_epochs=1", "--set", "distill.phases.grow.train.warmup_epochs=0"]
    found = stagedkd("run", "specs/weizmann.yaml", "--data-dir", str(clips), *short)
    assert found.returncode == 0, found.stderr
    (written,) = (project / "results").glob("weizmann+*/metrics.json")
    metrics = json.loads(written.read_text("utf-8"))
    assert metrics["clips"] == {"train": 60, "val": 30, "test": 0}
    # After so few epochs the accuracy on 30 clips is chance; the loss tells that the teacher learns.
    logs = [path.read_text("utf-8").splitlines() for path in (project / "store").glob("teach-*/events.jsonl")]
    rows = [row for log in logs for row in map(json.loads, log) if row["event"] == "epoch" and row["epochs"] == 12]
    losses = [row["losses"]["ce"] for row in rows]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.05


@pytest.mark.slow
def test_weights_of_ones_own_are_taken_locked_and_guarded(project: Path, stagedkd: Command) -> None:
    assert stagedkd("run", "specs/tiny.yaml", *FAST).returncode == 0
    (written,) = (project / "results").glob("tiny+*/metrics.json")
    before = json.loads(written.read_text("utf-8"))["teacher"]["top1"]
    (source,) = (p for p in (project / "store").glob("teach-*/files/teacher.safetensors") if p.stat().st_size > 30_000)
    (project / "teacher.safetensors").write_bytes(source.read_bytes())
    loaded = [*FAST, "--set", "teacher.epochs=0", "--set", "teacher.weights=teacher.safetensors"]
    assert "unlocked" in stagedkd("plan", "specs/tiny.yaml", *loaded).stdout
    found = stagedkd("run", "specs/tiny.yaml", *loaded)
    assert found.returncode == 0 and "locked weights teacher.safetensors" in found.stderr, found.stderr
    (again,) = (project / "results").glob("tiny+*weights*/metrics.json")
    assert again != written and json.loads(again.read_text("utf-8"))["teacher"]["top1"] == before
    with (project / "teacher.safetensors").open("ab") as stream:
        stream.write(b"x")
    changed = stagedkd("run", "specs/tiny.yaml", *loaded)
    assert changed.returncode == 2 and "differ from stagedkd.lock" in changed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["r3d_18", "swin3d_t", "s3d"])
def test_torchvision_teachers_of_a_small_student(project: Path, stagedkd: Command, arch: str) -> None:
    """Substages of a torchvision network, CNN or transformer, against those of a resnet3d."""
    sizes = ["--set", "clip.frames=8", "--set", "clip.size=32", "--set", "data.train=16", "--set", "data.val=8"]
    student = "{$replace: {arch: resnet3d, width: 4, blocks: [1, 1, 1, 1]}}"
    teacher = f"{{arch: {arch}, labels: all, epochs: 1}}"
    found = stagedkd(
        "run", "specs/tiny.yaml", *FAST[:2], "--set", f"teacher={teacher}", "--set", f"student={student}", *sizes
    )
    assert found.returncode == 0, found.stderr
    shapes = stagedkd(
        "check",
        "--shapes",
        "specs/tiny.yaml",
        *FAST[:2],
        "--set",
        f"teacher={teacher}",
        "--set",
        f"student={student}",
        *sizes,
    )
    assert re.search(r"student +4-4 +32x1x2x2 +\d+x\dx\dx\d", shapes.stdout), shapes.stdout
