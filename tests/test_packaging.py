"""The package as others get it: wheel, source distribution, container, completion, versions."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from stagedkd import __version__
from stagedkd.cli import app
from tests.conftest import REPO, TINY

DOCKERFILE = (REPO / "Dockerfile").read_text("utf-8")
CHANGELOG = (REPO / "CHANGELOG.md").read_text("utf-8")
CITATION = yaml.safe_load((REPO / "CITATION.cff").read_text("utf-8"))
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True, check=True).stdout


def tracked(folder: str = ".") -> list[str]:
    return [name for name in git("ls-files", "-z", folder).split("\0") if name and (REPO / name).is_file()]


# ---------------------------------------------------------------- versions


def test_every_file_names_one_version() -> None:
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "stagedkd._version.__version__"}
    assert CITATION["version"] == __version__
    assert re.findall(r'image\.version="([^"]+)"', DOCKERFILE) == [__version__]
    assert re.findall(r"^## \[([^]]+)\]", CHANGELOG, re.MULTILINE)[0] == __version__


def test_a_version_has_a_date_once_it_has_a_tag() -> None:
    released = bool(git("tag", "--list", f"v{__version__}").strip())
    (when,) = re.findall(rf"^## \[{re.escape(__version__)}\] - (\S+)$", CHANGELOG, re.MULTILINE)
    dates = (when, str(CITATION.get("date-released", "unreleased")))
    assert dates[0] == dates[1] and (dates[0] != "unreleased") == released, dates


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= kinds
    heads = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - (unreleased|\d{4}-\d\d-\d\d)", head) for head in heads)
    assert not [head for head in heads[1:] if head.endswith("unreleased")]


def test_the_citation_has_what_its_format_demands() -> None:
    """The whole schema is checked at a release, by cffconvert: see docs/release.md."""
    known = {"cff-version", "message", "title", "authors", "type", "version", "date-released", "license", "keywords"}
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys() <= known
    assert CITATION["license"] == PYPROJECT["project"]["license"]
    assert [author["name"] for author in CITATION["authors"]] == [a["name"] for a in PYPROJECT["project"]["authors"]]


# ---------------------------------------------------------------- completion


def completed(words: str, shell: str = "bash") -> list[str]:
    """What the shell is offered at the end of `words`."""
    variables = {"_STAGEDKD_COMPLETE": f"complete_{shell}", "COMP_WORDS": words}
    variables |= {"COMP_CWORD": str(len(words.split(" ")) - 1), "_TYPER_COMPLETE_ARGS": words}
    variables |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    shown = CliRunner().invoke(app, [], env=variables, prog_name="stagedkd").stdout
    return [line for line in shown.splitlines() if line]


def test_the_script_for_the_shell_is_printed() -> None:
    disabled = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    code = (
        "import sys; sys.argv = ['stagedkd', '--show-completion', 'bash']; from stagedkd.__main__ import main; main()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | disabled, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "_STAGEDKD_COMPLETE=complete_bash" in shown.stdout and "complete -o default" in shown.stdout


def test_commands_and_options_are_completed() -> None:
    assert completed("stagedkd pu") == ["publish"] and "data" in completed("stagedkd ")
    assert completed("stagedkd store v") == ["verify"] and completed("stagedkd run s.yaml --no-d") == ["--no-dvc"]


def test_specs_recipes_and_keys_are_completed(project: Path) -> None:
    for name in ("specs/tiny.tuned.yaml", "specs/deep/other.yaml", "top.yaml"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("", "utf-8")
    assert completed("stagedkd run ") == ["specs/deep/other.yaml", "specs/tiny.yaml", "top.yaml"]
    assert completed("stagedkd run specs/t") == ["specs/tiny.yaml"]
    assert completed("stagedkd recipes stagew") == ["stagewise"]
    assert completed("stagedkd store why ") == [], "there is no store"
    (project / "store" / "teach-0123456789ab").mkdir(parents=True)
    (project / "store" / ".work").mkdir()
    assert completed("stagedkd store why 01") == ["0123456789ab"] and completed("stagedkd store why ff") == []


def test_fish_gets_a_line_for_each_recipe(project: Path) -> None:
    rows = completed("stagedkd recipes s", "fish")
    assert rows and all("\t" in row for row in rows)


# ---------------------------------------------------------------- the container


def test_the_container_is_built_from_tracked_files_that_docker_sees() -> None:
    copied = [name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    allowed = [line[1:] for line in (REPO / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(allowed) and all(tracked(name) for name in copied)


def test_the_container_runs_as_no_root_and_starts_stagedkd() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", final, re.MULTILINE) and '\nENTRYPOINT ["stagedkd"]\n' in final


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed: the extra dev has it")
    found = subprocess.run([linter, str(REPO / "Dockerfile")], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and not found.stdout, found.stdout


@pytest.fixture
def installer(tmp_path: Path) -> Path:
    """A folder with docker/install.sh, the pinned file, and a `uv` that only writes down its arguments."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text('#!/bin/sh\necho "$@" >> calls\n', "utf-8")
    (tmp_path / "bin" / "uv").chmod(0o755)
    for name in ("docker/install.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(REPO / name, tmp_path)
    return tmp_path


def install(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run install.sh. Returns the exit status, and the calls of uv or the error."""
    path = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "install.sh", *arguments]
    done = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True, check=False)
    calls = folder / "calls"
    return done.returncode, calls.read_text("utf-8") if calls.exists() else done.stderr


def test_with_cuda_every_package_needs_its_hash(installer: Path) -> None:
    calls = "pip install --require-hashes -r pyproject.toml --extra onnx --extra hf -c requirements.txt\n"
    assert install(installer, "cuda", "", "onnx,hf") == (0, calls)


def test_without_cuda_torch_alone_comes_from_another_index(installer: Path) -> None:
    code, calls = install(installer, "cpu", "file:///wheels", "")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (REPO / "requirements.txt").read_text("utf-8"), re.MULTILINE))
    first, second = calls.splitlines()
    assert code == 0 and second == "pip install --verify-hashes -r pyproject.toml -c pinned.txt"
    wanted = f"torch=={pins['torch']} torchvision=={pins['torchvision']}"
    assert first == f"pip install --no-deps --default-index file:///wheels {wanted}"
    kept = set(re.findall(r"^([\w.-]+)==", (installer / "pinned.txt").read_text("utf-8"), re.MULTILINE))
    gone = {name for name in pins if re.match(r"(torch|torchvision|triton|cuda-.*|nvidia-.*)$", name)}
    assert kept == pins.keys() - gone and len(gone) > 10
    hashes = (installer / "pinned.txt").read_text("utf-8").count("--hash=")
    assert 0 < hashes < (REPO / "requirements.txt").read_text("utf-8").count("--hash=")


@pytest.mark.parametrize("arguments", [("cpu", "", ""), ("tpu", "", "")])
def test_a_container_that_cannot_be_built_says_why(installer: Path, arguments: tuple[str, ...]) -> None:
    code, text = install(installer, *arguments)
    assert code == 2 and text.startswith("error: DEVICE")


# ---------------------------------------------------------------- wheel and source distribution


@dataclass(frozen=True)
class Built:
    """The files of a release, and the wheel that the source distribution gives."""

    sdist: Path
    wheel: Path
    again: Path


def _build(source: Path, what: str, out: Path) -> Path:
    code = f"import sys; from setuptools.build_meta import build_{what} as b; print(b(sys.argv[1]))"
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    made = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, env=environment, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return out / made.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("release")
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, folder / "source" / name)
    for name in ("out", "again", "unpacked"):
        (folder / name).mkdir()
    sdist = _build(folder / "source", "sdist", folder / "out")
    with tarfile.open(sdist) as files:
        files.extractall(folder / "unpacked", filter="data")
    again = _build(next((folder / "unpacked").iterdir()), "wheel", folder / "again")
    return Built(sdist, _build(folder / "source", "wheel", folder / "out"), again)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as files:
        return {name: files.read(name) for name in files.namelist()}


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_no_other(built: Built) -> None:
    pages = {f"stagedkd/{name}" for name in tracked("docs") if name.endswith(".md")}  # for `stagedkd docs`
    assert {name for name in contents(built.wheel) if ".dist-info/" not in name} == set(tracked("stagedkd")) | pages
    assert built.wheel.name == f"stagedkd-{__version__}-py3-none-any.whl"


@pytest.mark.slow
def test_the_source_distribution_gives_the_same_wheel(built: Built) -> None:
    assert contents(built.wheel) == contents(built.again)
    with tarfile.open(built.sdist) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith("tests")]


@pytest.mark.slow
def test_both_files_have_sound_metadata(built: Built) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(built.sdist), str(built.wheel)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"NO_COLOR": "1"})
    assert found.returncode == 0 and found.stdout.count("PASSED") == 2, found.stdout


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `stagedkd` of a fresh environment with the wheel and what it requires, in the versions of this one."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed, and pip would take minutes: make installs it")
    folder = tmp_path_factory.mktemp("installed")
    versions = [f"{d.name}=={d.version}" for d in importlib.metadata.distributions() if d.name != "stagedkd"]
    (folder / "versions.txt").write_text("\n".join(versions), "utf-8")
    environment = folder / "venv"
    install = ["pip", "install", "-q", "--python", str(environment), "-c", str(folder / "versions.txt")]
    for words in (["venv", "-q", "--python", sys.executable, str(environment)], [*install, str(built.wheel)]):
        done = subprocess.run([uv, *words], capture_output=True, text=True, check=False, timeout=900)
        if done.returncode and "client error" in done.stderr.lower():
            pytest.skip(f"uv cannot install: {done.stderr.strip().splitlines()[-1][:200]}")
        assert done.returncode == 0, done.stderr
    return environment / ("Scripts" if os.name == "nt" else "bin") / "stagedkd"


@pytest.mark.slow
def test_an_installed_wheel_leads_from_videos_to_predictions(installed: Path, tmp_path: Path) -> None:
    """In an empty folder, with nothing of this repository in reach."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "STAGEDKD", "VIRTUAL"))}

    def stagedkd(*arguments: str) -> str:
        command = [str(installed), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=own | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    assert stagedkd("--version").startswith(f"stagedkd {__version__} ")
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "shapes.yaml").write_text(TINY, "utf-8")
    stagedkd("data", "export", "specs/shapes.yaml", "--out", "exported")
    stagedkd("init", "exported", "--out", "specs/mine.yaml")
    short = ("--set", "teacher.epochs=1", "--set", "student.epochs=1", "--set", "train.warmup_epochs=0")
    stagedkd("check", "specs/mine.yaml", *short)
    assert "control-ce" in stagedkd("run", "specs/mine.yaml", *short, "--results", "out")
    (report,) = (tmp_path / "out").rglob("report.html")
    video = next((tmp_path / "exported").rglob("*.avi"))
    assert video.stem in stagedkd("predict", str(report.parent), str(video))
    assert stagedkd("docs", "cluster") == (REPO / "docs" / "cluster.md").read_text("utf-8")
    assert "losses" in stagedkd("recipes", "kd") and '"$defs"' in stagedkd("schema")
