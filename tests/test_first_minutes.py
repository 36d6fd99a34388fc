"""The first minutes of a new user: init anywhere, hints that can be pasted, versions and help."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stagedkd import __version__, load_spec, report, run
from stagedkd.cli import app
from stagedkd.data.draft import FEW, draft
from stagedkd.data.layouts import list_clips
from stagedkd.errors import Advice, DataError, LockError, Origin, StagedkdError, StoreError, UsageError, about
from stagedkd.experiment.init import init_project
from stagedkd.launch.protocol import error_as_json, error_from_json
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.load import load_experiment, specs_root
from stagedkd.spec.schema.videos import below
from tests.conftest import REPO, TINY, Command
from tests.videos import write_video


def make_videos(folder: Path, classes: tuple[str, ...] = ("down", "up"), count: int = 6) -> Path:
    """A folder of small videos, `count` of each class."""
    first = folder / classes[0] / "0.avi"
    for name in classes:
        for number in range(count):
            path = folder / name / f"{number}.avi"
            if path == first:
                write_video(path, 16, noisy=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(first, path)
    return folder


def clips_of(spec: Path) -> int:
    """The number of clips that a spec finds, by the runtime of its project."""
    loaded = load_experiment(spec).cells[0].spec
    return len(list_clips(loaded.data, load_runtime(specs_root(spec)).folder("data_dir")).entries)  # type: ignore[arg-type]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("STAGEDKD_DATA", raising=False)
    return folder


# ---------------------------------------------------------------- init, anywhere


PLACES = {
    "empty folder": ([], None),
    "git": ([".git/"], None),
    "git with data": ([".git/", "data/"], None),
    "params without data_dir": (["params.yaml"], "runtime: {}\n"),
    "params with a missing data root": (["params.yaml"], "runtime: {data_dir: ../gone/deep/data}\n"),
    "lock alone": (["stagedkd.lock"], '{"version": 1}'),
    "dvc alone": ([".git/", "dvc.yaml"], "stages: {}\n"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("videos", ["clips", "../outside clips", "./clips/", "data/clips", "{}/clips", "."])
def test_init_works_wherever_it_is_called(empty: Path, place: str, videos: str) -> None:
    marks, text = PLACES[place]
    for mark in marks:
        (empty / mark).mkdir() if mark.endswith("/") else (empty / mark).write_text(str(text), "utf-8")
    named = Path(videos.format(empty))
    make_videos(named, count=3)
    made = init_project(named, None)
    assert clips_of(made.spec) == 6 and made.spec.parent == Path("specs")
    assert (empty / "params.yaml").exists() == (place == "empty folder" or "params.yaml" in marks)
    if videos == "../outside clips":
        assert load_spec(made.spec).data.path == str(named.resolve())  # type: ignore[union-attr]
    elif "gone" not in str(text):
        assert not Path(load_spec(made.spec).data.path).is_absolute()  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="exists already"):
        init_project(named, None)


def test_a_data_root_that_the_environment_names_counts(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_videos(empty.parent / "sets" / "mine", count=3)
    monkeypatch.setenv("STAGEDKD_DATA", str(empty.parent / "sets"))
    made = init_project(empty.parent / "sets" / "mine", None)
    assert load_spec(made.spec).data.path == "mine" and clips_of(made.spec) == 6  # type: ignore[union-attr]


def test_init_below_a_project_and_out_elsewhere(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "params.yaml").write_text("runtime: {data_dir: videos}\n", "utf-8")
    make_videos(empty / "videos" / "mine", count=3)
    (empty / "deep").mkdir()
    monkeypatch.chdir(empty / "deep")
    made = init_project(Path("../videos/mine"), None)
    assert load_spec(made.spec).data.path == "mine" and not Path("params.yaml").exists()  # type: ignore[union-attr]
    there = empty.parent / "there" / "x.yaml"
    made = init_project(Path("../videos/mine"), there)
    assert (there.parent / "params.yaml").exists() and clips_of(there) == 6
    Path("file").write_text("", "utf-8")
    with pytest.raises(UsageError, match=r"file/x.yaml cannot be written: "):
        init_project(Path("../videos/mine"), Path("file/x.yaml"))


@pytest.mark.parametrize("name", ["null", "1e3", "true", "a, b", "x: y", "été", "[1]", "12", "- a", "tail #1"])
def test_a_name_that_yaml_reads_otherwise_is_quoted(empty: Path, name: str) -> None:
    make_videos(empty / name, count=3)
    made = init_project(Path(name), Path("s.yaml"))
    assert load_spec(made.spec).data.path == name and clips_of(made.spec) == 6  # type: ignore[union-attr]


def test_a_path_is_not_walked_through_a_missing_folder_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "far" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inside")
    (tmp_path / "table.csv").symlink_to(tmp_path / "far" / "t.csv")
    assert below(tmp_path / "gone", "../x") == tmp_path / "x"
    assert below(tmp_path, "gone/../../y") == tmp_path.parent / "y"
    assert below(tmp_path, "link/../x") == tmp_path / "far" / "x"  # as the system walks
    assert below(tmp_path, "table.csv") == tmp_path / "table.csv"
    assert below(tmp_path / "gone", "..") == tmp_path and below(tmp_path, ".") == tmp_path
    assert below(tmp_path, "/") == Path("/")


def test_tables_and_lists_are_taken_and_what_is_no_set_is_refused(empty: Path) -> None:
    make_videos(empty / "v", count=4)
    rows = [f"{name}/{number}.avi" for name in ("down", "up") for number in range(4)]
    (empty / "v" / "table.csv").write_text("path,label\n" + "".join(f"{r},{r[0]}\n" for r in rows), "utf-8")
    (empty / "v" / "list.txt").write_text("".join(f"{r} {int(r[0] == 'u')}\n" for r in rows), "utf-8")
    for name, classes in (("table.csv", ("d", "u")), ("list.txt", ("0", "1"))):
        made = init_project(Path("v") / name, None)
        assert made.spec == Path("specs") / f"{Path(name).stem}.yaml" and clips_of(made.spec) == 8
        assert draft(Path("v") / name, empty, empty).classes == classes
    assert "read the table v/table.csv" in init_project(Path("v"), None).lines
    for named, words in (("gone", "does not exist"), ("v/up/0.avi", "is one video")):
        with pytest.raises(UsageError, match=words) as caught:
            init_project(Path(named), None)
        assert "table or list" in caught.value.hint
    with pytest.raises(DataError, match="no videos below"):
        init_project(Path("v/up"), Path("x.yaml"))
    assert not Path("x.yaml").exists()


# ---------------------------------------------------------------- the spec that init writes


def test_every_set_gets_kd_and_weak_labels_may_be_refined(empty: Path) -> None:
    """What is not shown to help is no default: docs/results.md, T1."""
    make_videos(empty / "v", count=8)
    rows = [f"{name}/{number}.avi,{name},{int(number < 6)}\n" for name in ("down", "up") for number in range(8)]
    (empty / "noisy.csv").write_text("path,label,clean\n" + "".join(f"v/{row}" for row in rows), "utf-8")
    (empty / "few.csv").write_text(
        "path,label\n" + "".join(f"v/{row.split(',')[0]},{'' if '7.avi' in row else row[0]}\n" for row in rows), "utf-8"
    )
    clean = load_spec(init_project(Path("v"), None).spec)
    assert clean.refine is None and clean.labels.clean == 1 and list(clean.distill.phases) == ["train"]
    assert "recipe: kd " in Path("specs/v.yaml").read_text("utf-8")
    for name in ("noisy", "few"):
        path = init_project(Path(f"{name}.csv"), None).spec
        weak = load_spec(path)
        assert weak.refine is None and list(weak.distill.phases) == ["train"], name
        text = path.read_text("utf-8").replace("recipe: kd ", "# ").replace("# recipe: staged", "recipe: staged")
        path.write_text(text.replace("# refine:", "refine:"), "utf-8")
        weak = load_spec(path)
        assert weak.refine is not None and weak.refine.rounds == 1 and "joint" in weak.distill.phases, name


def test_the_lines_that_are_suggested_load(empty: Path) -> None:
    make_videos(empty / "v", count=8)
    path = init_project(Path("v"), None).spec
    text = path.read_text("utf-8")
    folds = load_experiment(path).cells[0].spec.data.folds  # type: ignore[union-attr]
    path.write_text(re.sub(r"^# (grid: .*)$", r"\1", text, flags=re.MULTILINE), "utf-8")
    cells = load_experiment(path).cells
    assert [cell.spec.data.fold for cell in cells] == list(range(folds))  # type: ignore[union-attr]
    pretrained = re.sub(r"^teacher: .*\n", "", text, flags=re.MULTILINE).replace("# teacher:", "teacher:")
    path.write_text(pretrained.replace("size: 48", "size: 112"), "utf-8")
    assert load_spec(path).teacher.arch == "r2plus1d_18"
    path.write_text(text.replace("# labels: {clean: 0.2}", "labels: {clean: 0.2}"), "utf-8")
    assert load_spec(path).labels.clean == 0.2


def test_enough_validation_clips_need_no_cross_validation(empty: Path) -> None:
    make_videos(empty / "v", count=FEW // 2 * 5)
    text = draft(Path("v"), empty, empty).text
    assert "Cross-validation" not in text and "grid:" not in text
    shutil.rmtree(empty / "v" / "up")
    make_videos(empty / "v", count=FEW // 2 * 5 - 5)
    shutil.rmtree(empty / "v" / "down")
    make_videos(empty / "v", count=FEW // 2 * 5 - 5)
    assert f"Only {FEW - 2} clips are for validation" in draft(Path("v"), empty, empty).text


def test_epochs_fit_the_number_of_clips(empty: Path) -> None:
    """The more clips, the fewer epochs: a small set and one of hundreds of clips take about as long."""
    for count, epochs in ((6, 200), (150, 42)):
        make_videos(empty / str(count), count=count)
        path = empty / f"{count}.yaml"
        path.write_text(draft(empty / str(count), empty, empty, path).text, "utf-8")
        spec = load_spec(path)
        assert spec.teacher.epochs == spec.student.epochs == epochs and spec.train.warmup_epochs < epochs


# ---------------------------------------------------------------- hints


def test_a_command_is_quoted_for_the_shell() -> None:
    origin = Origin("specs/my videos.yaml", ("--set", "data.path=a b"), {"lock": ("--data-dir", "/x y")})
    for name, further in (("lock", ["--data-dir", "/x y"]), ("run", [])):
        expected = ["stagedkd", name, "specs/my videos.yaml", "--set", "data.path=a b", *further]
        assert shlex.split(origin.command(name)) == expected
    assert Origin("-x.yaml").command("run") == "stagedkd run ./-x.yaml"
    assert Origin().command("run") == "stagedkd run SPEC" and Origin("a") == Origin("b")


def test_an_error_keeps_the_first_spec_and_crosses_processes() -> None:
    with pytest.raises(LockError) as caught, about(Origin("outer.yaml")), about(Origin("inner.yaml")):
        raise LockError("differs", hint=Advice("restore it, or run", "lock"))
    assert caught.value.hint == "restore it, or run: stagedkd lock inner.yaml"
    again = error_from_json(error_as_json(caught.value))
    assert again.hint == "restore it, or run: stagedkd lock SPEC"
    with pytest.raises(StagedkdError) as told, about(Origin("here.yaml")):
        raise again
    assert told.value.hint == "restore it, or run: stagedkd lock here.yaml"


def test_no_hint_of_the_code_says_spec() -> None:
    """The word stands in help texts and where no spec is known, and nowhere else."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((REPO / "stagedkd").rglob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"stagedkd \w+ SPEC|THIS_FILE", line)
    ]
    assert found == []


@pytest.mark.slow
def test_hints_name_the_spec_and_the_options_at_hand(project: Path, stagedkd: Command) -> None:
    (project / "params.yaml").write_text("runtime: {device: cpu, threads: 1, data_dir: nowhere}\n", "utf-8")
    make_videos(project / "sets" / "v w", count=4)
    text = TINY.replace("{kind: shapes, classes: 4, train: 48, val: 16, test: 16}", "{kind: folder, path: v w}")
    (project / "specs" / "my videos.yaml").write_text(text, "utf-8")
    options = ("--set", "data.folds=4", "--data-dir", "sets")
    shown = stagedkd("show", "specs/my videos.yaml", "--store", "my store", "--set", "data.folds=4")
    command = shlex.split(shown.stderr.split("help: run: ")[1])
    assert command == ["stagedkd", "run", "specs/my videos.yaml", "--set", "data.folds=4", "--store", "my store"]
    assert "data has not run: stagedkd.lock lacks data" in shown.stderr and shown.returncode == 1
    planned = stagedkd("plan", "specs/my videos.yaml")
    assert "run: stagedkd lock 'specs/my videos.yaml'\n" in planned.stdout
    assert stagedkd("lock", "specs/my videos.yaml", *options).returncode == 0
    (project / "sets" / "v w" / "up" / "0.avi").write_bytes(b"other")
    changed = stagedkd("run", "specs/my videos.yaml", *options)
    assert changed.returncode == 2
    assert changed.stderr.splitlines()[-1].strip() == (
        "help: restore the files, or accept them as they are: "
        "stagedkd lock 'specs/my videos.yaml' --set data.folds=4 --data-dir sets"
    )
    hinted = shlex.split(changed.stderr.split("as they are: ")[1])
    assert stagedkd(*hinted[1:]).returncode == 0
    why = stagedkd("store", "why", "0123456789")
    assert "or: stagedkd plan 'specs/my videos.yaml'" in why.stderr and "SPEC" not in why.stderr


def test_hints_name_the_spec_in_python_too(project: Path) -> None:
    spec = load_spec("specs/tiny.yaml", ["train.lr=2e-2"])
    from stagedkd import compile_plan

    with pytest.raises(StoreError) as caught:
        report(compile_plan(spec))
    assert caught.value.hint == "run: stagedkd run specs/tiny.yaml --set train.lr=2e-2"
    assert spec == type(spec).model_validate(spec.model_dump())  # where it is from is no part of what it means
    make_videos(project / "data" / "v", count=4)
    data = {"kind": "folder", "path": "v"}
    text = TINY.replace("{kind: shapes, classes: 4, train: 48, val: 16, test: 16}", str(data).replace("'", ""))
    Path("specs/own.yaml").write_text(text, "utf-8")
    (project / "stagedkd.lock").write_text(
        '{"data": {"folder:v": {"fingerprint": "0", "classes": ["down", "up"], "clips": 1, "files": {}}}}', "utf-8"
    )
    with pytest.raises(LockError) as differs:
        run(load_spec("specs/own.yaml"))
    assert differs.value.hint.endswith("stagedkd lock specs/own.yaml")


# ---------------------------------------------------------------- versions and help


@pytest.mark.slow
def test_versions_help_and_the_module(tmp_path: Path) -> None:
    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)

    python = ".".join(map(str, sys.version_info[:3]))
    expected = f"stagedkd {__version__} (Python {python}, torch {torch.__version__.partition('+')[0]}"
    for module in ("stagedkd", "stagedkd.cli"):
        shown = call("-m", module, "--version")
        assert shown.stdout.startswith(expected) and shown.returncode == 0, shown
    light = "import sys; sys.argv[1:] = ['--version']\nimport stagedkd.cli\ntry: stagedkd.cli.main()\nexcept SystemExit: print('torch' in sys.modules)"
    assert call("-c", light).stdout.splitlines()[-1] == "False"
    alone = call("-m", "stagedkd")
    assert alone.returncode in (0, 2) and "Usage: stagedkd " in alone.stdout + alone.stderr


def test_every_command_and_group_has_a_short_help() -> None:
    from typer.core import TyperGroup
    from typer.main import get_command
    from typer.testing import CliRunner

    group = get_command(app)
    assert isinstance(group, TyperGroup)
    calls = [[]] + [[name] for name in group.commands]
    calls += [[name, inner] for name, below in group.commands.items() for inner in getattr(below, "commands", {})]
    assert len(calls) > 25
    for names in calls:
        shown = CliRunner().invoke(app, [*names, "-h"])
        assert shown.exit_code == 0 and "Usage:" in shown.output and "--help" in shown.output, names


# ---------------------------------------------------------------- in a fresh clone


@pytest.mark.slow
def test_the_quickstart_leaves_a_clone_clean(tmp_path: Path) -> None:
    """The recipe of `make quickstart`, with fewer epochs: DVC is used here, and would rewrite dvc.lock."""
    clone = tmp_path / "clone"
    clone.mkdir()
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (REPO / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, clone / name)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], cwd=clone, check=True, capture_output=True)
    recipe = subprocess.run(["make", "-n", "quickstart"], cwd=clone, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in recipe.splitlines() if "stagedkd run" in line]
    _, *arguments = shlex.split(line)
    short = ["--set", "data.train=64", "--set", "teacher.epochs=1", "--set", "student.epochs=4"]
    short += ["--set", "train.warmup_epochs=0"]
    found = subprocess.run(
        [sys.executable, "-m", "stagedkd", *arguments, *short],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "--no-dvc" in arguments and (clone / "store").is_dir()
    status = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True)
    assert status.stdout == ""
