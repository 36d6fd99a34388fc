"""`stagedkd data ...` on real command lines: exported simulated sets in the official layouts, index, verify, preview."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from PIL import Image

from stagedkd.data.address import Address
from stagedkd.data.cache import CacheSpec
from stagedkd.data.cache_build import open_cache
from stagedkd.data.decode import inspect
from stagedkd.data.index import split_entries
from stagedkd.data.layouts import list_clips
from stagedkd.data.seek import SeekingFiles, proven, require_torchcodec
from stagedkd.data.source import VideoFiles
from stagedkd.errors import UsageError
from stagedkd.spec.schema import Hmdb51, Ucf101
from stagedkd.stages.tables import read_table
from tests.conftest import REPO, Command
from tests.tools import files_of, marks
from tests.videos import write_video

FIGURES = """\
data: {kind: figures, classes: [walk, jack, bend, squat], train: 48, val: 16, test: 16, noise: 0.02}
clip: {frames: 4, size: 16}
labels: {clean: 0.5}
train: {batch: 16, lr: 1e-2}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
recipe: kd
"""
SHRUNK = [
    "teacher.weights=r2plus1d.pth",
    "teacher.epochs=1",
    "clip.frames=2",
    "clip.stride=1",
    "clip.size=16",
    "clip.resize=18",
    "train.batch=64",
    "train.precision=fp32",
    "train.warmup_epochs=0",
    "student.width=4",
    "student.epochs=2",
    "student.sees=300",  # of the 2,856 that the official list names; all are indexed, and all of the split are evaluated
    "teacher.sees=same",
    "evaluate.clips=1",
    "augment.flip=0.5",
]


@pytest.fixture
def figures(project: Path) -> Path:
    (project / "specs" / "figures.yaml").write_text(FIGURES, "utf-8")
    return project


def exported(stagedkd: Command, name: str, *arguments: str) -> None:
    found = stagedkd("data", "export", "specs/figures.yaml", "--out", f"data/{name}", *arguments)
    assert found.returncode == 0, found.stderr
    assert f"path: {name}}}" in found.stdout


@pytest.mark.slow
def test_an_exported_set_is_read_trained_on_and_verified(figures: Path, stagedkd: Command) -> None:
    exported(stagedkd, "sim", "--size", "40x32", "--frames", "10")
    first = figures / "data/sim/UCF-101/walk/v_walk_g01_c01.avi"
    held = inspect(Address(first))
    assert (held.frames, held.height, held.width, held.fault) == (10, 32, 40, "")
    spec = figures / "specs" / "sim.yaml"
    spec.write_text("extends: figures.yaml\ndata: {$replace: {kind: ucf101, path: sim, folds: 3}}\n", "utf-8")
    found = json.loads(stagedkd("data", "index", "specs/sim.yaml", "--json").stdout)
    counts = Counter({s: sum(row[s] for row in found["counts"].values()) for s in ("train", "val", "test")})
    assert counts["test"] == 16 and counts["train"] + counts["val"] == 64 and found["duplicates"] == []
    (figures / "data/sim/UCF-101/jack/v_jack_g01_c01.avi").write_bytes(first.read_bytes())  # a copy in another class
    (figures / "data/sim/UCF-101/walk/v_walk_g01_c02.avi").unlink()
    (figures / "data/sim/UCF-101/walk/v_walk_g99_c01.avi").write_bytes(first.read_bytes())
    text = stagedkd("data", "index", "specs/sim.yaml").stdout
    for words in (
        "1 sets of copies",
        "v_jack_g01_c01.avi",
        "1 videos listed but missing",
        "v_walk_g01_c02.avi",
        "1 videos present but not listed",
        "v_walk_g99_c01.avi",
    ):
        assert words in text, text
    run = stagedkd("run", "specs/sim.yaml")
    assert run.returncode == 0 and "bad file UCF-101/walk/v_walk_g01_c02.avi: missing" in run.stderr, run.stderr
    verified = stagedkd("data", "verify", "specs/sim.yaml")
    assert verified.returncode == 0 and "80 cached clips equal a fresh decode" in verified.stdout
    write_video(first, 10, (40, 32))  # other pixels under the same name
    changed = stagedkd("data", "verify", "specs/sim.yaml")
    assert changed.returncode == 1 and "v_walk_g01_c01.avi: the cached frames differ" in changed.stderr
    again = stagedkd("data", "export", "specs/figures.yaml", "--out", "data/sim")
    assert again.returncode == 2 and "already exists" in again.stderr


@pytest.mark.slow
def test_streams_train_to_the_same_bits_as_the_cache(figures: Path, stagedkd: Command) -> None:
    exported(stagedkd, "sim", "--size", "40x32", "--frames", "10")
    (figures / "specs" / "sim.yaml").write_text(
        "extends: figures.yaml\ndata: {$replace: {kind: ucf101, path: sim}}\n", "utf-8"
    )
    for store, cache in (("raw", "raw"), ("stream", "none")):
        found = stagedkd("run", "specs/sim.yaml", "--set", f"clip.cache={cache}", "--store", store)
        assert found.returncode == 0, found.stderr
    raw, stream = (sorted(p for p in (figures / s).rglob("files/*") if p.is_file()) for s in ("raw", "stream"))
    assert [p.relative_to(figures / "raw") for p in raw] == [p.relative_to(figures / "stream") for p in stream]
    assert len(raw) > 8 and all(a.read_bytes() == b.read_bytes() for a, b in zip(raw, stream, strict=True))
    jpeg = stagedkd("run", "specs/sim.yaml", "--set", "clip.cache=jpeg", "--store", "jpeg")
    assert jpeg.returncode == 0 and len(list((figures / "cache").glob("*/shard-00000.bin"))) == 2


@pytest.mark.slow
def test_a_preview_is_drawn_for_every_class(figures: Path, stagedkd: Command) -> None:
    found = stagedkd("data", "preview", "specs/figures.yaml", "--clips", "2")
    assert found.returncode == 0, found.stderr
    folder = figures / "results/figures/preview"
    assert {p.name for p in folder.iterdir()} == {"contact.png", "walk.webp", "jack.webp", "bend.webp", "squat.webp"}
    with Image.open(folder / "contact.png") as sheet:
        assert sheet.width > 600 and len(set(np.asarray(sheet).reshape(-1, 3).sum(1).tolist())) > 100
    with Image.open(folder / "walk.webp") as moving:
        assert getattr(moving, "n_frames", 1) == 4


def test_the_commands_say_what_they_cannot_do(figures: Path, stagedkd: Command) -> None:
    for arguments, words in (
        (("data", "verify", "specs/figures.yaml"), "simulated clips have no cache"),
        (("data", "export", "specs/figures.yaml", "--out", "x", "--size", "big"), "is not of the form WIDTHxHEIGHT"),
        (
            ("data", "export", "specs/figures.yaml", "--out", "x", "--lists", "specs"),
            "there are no lists (*.txt) in specs",
        ),
        (("data", "export", "specs/figures.yaml", "--out", "x", "--size", "31x20"), "both sides must be even"),
    ):
        found = stagedkd(*arguments)
        assert found.returncode == 2 and words in found.stderr and "Traceback" not in found.stderr, found.stderr
    assert "the spec names no weights" in stagedkd("fetch", "specs/figures.yaml").stdout


@pytest.mark.slow
def test_fetch_finds_what_is_there_and_says_where_to_put_what_is_not(figures: Path, stagedkd: Command) -> None:
    torch.save({"x": torch.zeros(1)}, figures / "net.pth")
    (figures / "specs" / "own.yaml").write_text("extends: figures.yaml\nteacher: {weights: net.pth}\n", "utf-8")
    found = stagedkd("fetch", "specs/own.yaml")
    assert (
        found.returncode == 0
        and f"net.pth: {figures / 'net.pth'}" in found.stdout
        and "weights net.pth: " in found.stdout
    )
    net = "extends: figures.yaml\nteacher: {$replace: {arch: r3d_18, weights: KINETICS400_V1, epochs: 1}}\n"
    (figures / "specs" / "net.yaml").write_text(net, "utf-8")
    missing = stagedkd("fetch", "specs/net.yaml", TORCH_HOME=str(figures / "hub"))
    assert (
        missing.returncode == 2
        and "cannot be downloaded" in missing.stderr
        and "on a machine with network" in missing.stderr
    )


@pytest.mark.slow
def test_no_training_stage_reads_the_hidden_truth(figures: Path, stagedkd: Command) -> None:
    """With the truth of the training clips gone, the labels and networks are the same bits: training reads the given
    labels, and of the truth the validation clips' alone. A teacher of all labels reads it, and says so."""
    hidden = """
        import sys, tempfile
        from pathlib import Path
        from stagedkd.cli import main
        from stagedkd.stages.tables import read_table, write_table
        from stagedkd.store.store import Artifact
        read, place = Artifact.read, Path(tempfile.mkdtemp()) / "truth.parquet"
        def without_truth(artifact, name):
            content = read(artifact, name)
            if name == "truth.parquet" and sys._getframe(1).f_globals["__name__"] != "stagedkd.stages.weaken":
                splits = read_table(read(artifact, "clips.parquet"), "split")["split"]
                table = read_table(content)
                table["label"] = [-1 if of == "train" else i for of, i in zip(splits, table["label"], strict=True)]
                write_table(place, table)
                return place.read_bytes()
            return content
        Artifact.read = without_truth
        main()
    """
    train = [sys.executable, "-c", dedent(hidden), "run", "specs/figures.yaml", "--store"]
    calls = {labels: [*train, f"{labels}-hidden", "--set", f"teacher.labels={labels}"] for labels in ("same", "all")}
    assert stagedkd("run", "specs/figures.yaml", "--set", "teacher.labels=same", "--store", "same").returncode == 0
    ran = {
        labels: subprocess.run(call, cwd=figures, capture_output=True, text=True, timeout=900, check=False)
        for labels, call in calls.items()
    }
    assert ran["same"].returncode == 0, ran["same"].stderr
    assert files_of(figures / "same-hidden") == files_of(figures / "same")
    assert ran["all"].returncode == 1 and "no training clip has a label" in ran["all"].stderr


# ---------------------------------------------------------------- official lists


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "splits"),
    [
        ("ucf101", {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}),
        ("hmdb51", {1: (3570, 1530)}),
    ],
)
def test_the_official_lists_over_exported_videos(
    figures: Path, stagedkd: Command, clips: Path, layout: str, splits: dict[int, tuple[int, int]]
) -> None:
    """Every video that the lists name is there; split sizes; no (class, group) is shared; the shipped spec runs on it."""
    exported(
        stagedkd,
        layout,
        "--layout",
        layout,
        "--lists",
        str(clips / "splits" / layout),
        "--frames",
        "2",
        "--size",
        "16x16",
    )
    for split, (train, test) in splits.items():
        data = {"ucf101": Ucf101, "hmdb51": Hmdb51}[layout].model_validate({"kind": layout, "split": split})
        listed = list_clips(data, figures / "data")
        assert all((listed.root / e.path).is_file() for e in listed.entries) and not listed.unlisted
        placed = split_entries(listed.entries, data)
        counts = Counter(e.split for e in placed)
        assert (counts["train"] + counts["val"], counts["test"]) == (train, test)
        groups = {s: {(e.label, e.group) for e in placed if e.split == s} for s in counts}
        assert not groups["train"] & groups["test"] and not groups["val"] & (groups["train"] | groups["test"])
    if layout == "ucf101":
        return  # its spec is run on HMDB51's half as many videos, which extends it
    from torchvision.models.video import r2plus1d_18

    torch.save(r2plus1d_18(num_classes=400).state_dict(), figures / "r2plus1d.pth")
    for name in ("ucf101.yaml", "hmdb51.yaml"):
        (figures / "specs" / name).write_bytes((REPO / "specs" / name).read_bytes())
    sets = [argument for value in SHRUNK for argument in ("--set", value)]
    found = stagedkd("run", "specs/hmdb51.yaml", *sets)
    assert found.returncode == 0, found.stderr
    (made,) = (figures / "store").glob("prepare-*/files/clips.parquet")
    table = read_table(made.read_bytes())
    assert Counter(table["split"])["test"] == 1530 and set(table["frames"]) == {2}
    assert re.search(r"student +\d", found.stdout)


# ---------------------------------------------------------------- torchcodec


def torchcodec() -> None:
    try:
        require_torchcodec()
    except UsageError as error:
        pytest.skip(error.message)


def test_torchcodec_is_used_where_it_is_proven(clips: Path) -> None:
    torchcodec()
    wrong = proven(Address(clips / "odd" / "ucf101_packed_bframes.avi"))
    assert wrong.frames == 0 and re.search(r"torchcodec gives frame \d+ for frame \d+", wrong.fault)
    path = "weizmann/run/ido_run.avi"
    assert proven(Address(clips / path)) == inspect(Address(clips / path))
    sought = SeekingFiles(clips, 48).frames(path, [3, 17, 9])
    ours = VideoFiles(clips, 48).frames(path, [3, 17, 9])
    assert sought.shape == ours.shape and np.abs(sought.astype(int) - ours).mean() < 3


@pytest.mark.slow
def test_every_weizmann_clip_is_proven_for_torchcodec(clips: Path) -> None:
    torchcodec()
    assert not [path for path in (clips / "weizmann").rglob("*.avi") if proven(Address(path)).fault]


def test_a_cache_without_videos_left_is_still_read(tmp_path: Path) -> None:
    write_video(tmp_path / "v" / "a.avi")
    spec = CacheSpec(tmp_path / "v", marks(tmp_path / "v", ["a.avi"]), 16)
    open_cache(tmp_path / "c", spec, 1, lambda *_: None, lambda _: None)
    (tmp_path / "v" / "a.avi").unlink()
    assert len(open_cache(tmp_path / "c", spec, 1, lambda *_: None, lambda _: None).frames("a.avi")) == 12
