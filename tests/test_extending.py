"""docs/extending.md, followed in a copy of the package: its blocks are put where they say, and its commands are run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.videos import write_video

GUIDE = (REPO / "docs" / "extending.md").read_text("utf-8")
MOST_FILES = {  # the aim of the project: files of each extension point
    "A loss": 4,
    "A network family": 4,
    "A data layout": 3,
    "A simulator": 4,
    "A kind of work": 5,
    "A launcher": 3,
    "A sink": 1,
    "A guide": 5,
}
HEADER = re.compile(r"# (\S+): (?:(new file|at the end)|(before|after|instead of) `(.+)`)")


@dataclass(frozen=True)
class Block:
    """A block of the guide: its section, the file and the place that its first line names, and the text behind it."""

    section: str
    path: str
    place: str
    anchor: str
    text: str


def sections() -> dict[str, str]:
    """The text below each heading; "" is the introduction."""
    first, *rest = re.split(r"^## ", GUIDE, flags=re.MULTILINE)
    return {"": first} | dict(part.split("\n", 1) for part in rest)


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def blocks() -> list[Block]:
    found: list[Block] = []
    for section, text in sections().items():
        for code in [*fenced(text, "yaml"), *fenced(text, "python")]:
            first, rest = code.split("\n", 1)
            header = HEADER.fullmatch(first)
            assert header, f"no file and place in the first line of a block: {first}"
            path, whole, side, anchor = header.groups()
            found.append(Block(section, path, whole or side, anchor or "", rest))
    return found


def commands(section: str) -> list[list[str]]:
    return [line.split() for code in fenced(sections()[section], "sh") for line in code.splitlines()]


def listed_files(section: str) -> list[str]:
    """The numbered list with which a section begins."""
    rows = re.match(r"\n((?:\d+\. `.+\n(?: +.+\n)*)+)", sections()[section])
    assert rows, f"section '{section}' does not begin with its list of files"
    return re.findall(r"^\d+\. `(.+?)`", rows[1], re.MULTILINE)


def put(root: Path, block: Block) -> None:
    """Put a block where its first line says."""
    path = root / block.path
    if block.place == "new file":
        assert not path.exists(), f"{block.path} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, "utf-8")
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    if block.place == "at the end":
        at, after = len(lines), len(lines)
    else:
        wanted = block.anchor.removesuffix("...")
        found = [i for i, line in enumerate(lines) if line.startswith(wanted)]
        if wanted == block.anchor:
            found = [i for i in found if lines[i].rstrip("\n") == wanted]
        assert len(found) == 1, f"{block.path}: {len(found)} lines are `{block.anchor}`"
        at, after = found[0] + (block.place == "after"), found[0] + (block.place != "before")
    path.write_text("".join([*lines[:at], block.text, *lines[after:]]), "utf-8")


def copy_of_package(root: Path, left_out: Callable[[Block], bool] = lambda block: False) -> Path:
    """A copy of the package with all blocks of the guide, or without those that a test leaves out."""
    shutil.copytree(REPO / "stagedkd", root / "stagedkd", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "params.yaml").write_text("runtime: {device: cpu, threads: 1}\n", "utf-8")
    for block in blocks():
        if not left_out(block):
            put(root, block)
    return root


def call(root: Path, *command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python with the copy in front of all other packages."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    environment.pop("STAGEDKD_DATA", None)
    return subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def leaving_out(path: str, part: str) -> Callable[[Block], bool]:
    """The one block of a file that has `part` in its text."""
    meant = [block for block in blocks() if block.path == path and part in block.text]
    assert len(meant) == 1, f"{len(meant)} blocks of {path} have {part}"
    return lambda block: block == meant[0]


# ---------------------------------------------------------------- the page


def test_every_extension_point_has_its_files_and_no_more_than_the_aim() -> None:
    assert sections().keys() - {""} == MOST_FILES.keys()
    for section, most in MOST_FILES.items():
        files, block_files = listed_files(section), {b.path for b in blocks() if b.section == section}
        assert len(files) == len(set(files)) <= most, section
        assert set(files) == {path for path in block_files if path.startswith("stagedkd/")}, section
    table = dict(re.findall(r"\[an? ([\w ]+)\]\(#[\w-]+\) \| (\d+)", GUIDE))
    told = {section.split(" ", 1)[1]: len(listed_files(section)) for section in MOST_FILES} | {"guide": 2}
    assert {name: int(count) for name, count in table.items()} == told


def test_every_file_that_the_guide_names_exists() -> None:
    new = {block.path for block in blocks() if block.place == "new file"}
    named = set(re.findall(r"`((?:stagedkd|tests|benchmarks|docs)/[\w./]+)`", GUIDE)) - new
    assert len(named) > 25
    assert not [path for path in sorted(named) if not (REPO / path).exists()]
    assert not [path for path in sorted(new) if (REPO / path).exists()]


def test_prose_is_narrow_and_every_section_can_be_tried() -> None:
    assert not [line for line in GUIDE.splitlines() if len(line) > 120]
    assert all(commands(section) for section in MOST_FILES)
    assert {command[0] for section in MOST_FILES for command in commands(section)} == {"stagedkd"}


def test_the_guide_lists_the_events_that_a_sink_receives() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", sections()["A sink"], re.MULTILINE))
    loop = "".join((REPO / "stagedkd/train" / name).read_text("utf-8") for name in ("loop.py", "account.py"))
    assert set(re.findall(r'log\.write\("(\w+)"', loop)) == table.keys()
    (row,) = re.findall(r"row = \{\n(.*?)\n        \}", loop, re.DOTALL)
    further = re.findall(r'"epoch", \*\*row, (\w+)=', loop) + re.findall(r'mixture = \{"(\w+)"', loop)
    assert re.findall(r'"(\w+)":', row) + further == re.findall(r"`(\w+)`", table["epoch"])


# ---------------------------------------------------------------- following it


LOAD_ALL = """\
from pathlib import Path
import stagedkd
from stagedkd.plan.compile import compile_plan
from stagedkd.spec.load import load_spec
assert Path(stagedkd.__file__).is_relative_to(Path.cwd())
for path in sorted(Path("specs").glob("*.yaml")):
    plan = compile_plan(load_spec(path))
    student, names = plan.stage("student").work, [stage.name for stage in plan.stages]
    assert "tally" in names
    print(path.stem, student.arch.arch, plan.stage("data").work.data.kind, *student.phases[0].losses.named())
import stagedkd.losses, stagedkd.models.build, stagedkd.data.layouts, stagedkd.data.simulate
"""
IMPORT_ALL = "import stagedkd.spec.families, stagedkd.losses, stagedkd.data.simulate"
CHECK = "import sys; sys.argv[1:] = ['check', 'specs/diving48.yaml']; from stagedkd.cli import main; main()"

FORGOTTEN = [
    ("stagedkd/losses/__init__.py", '"cosine": cosine', "the loss 'cosine' has no function: add it to FUNCTIONS"),
    ("stagedkd/spec/schema/losses/whole.py", "cosine: Cosine", "the loss 'cosine' is not a field of Losses"),
    ("stagedkd/losses/feature.py", "def cosine", "cannot import name 'cosine'"),
    ("stagedkd/spec/schema/networks/__init__.py", "C3dTeacher |", "C3dArch has no member of the union Teacher"),
    ("stagedkd/spec/schema/networks/__init__.py", "C3dArch |", "C3dArch has no member of the union Arch"),
    ("stagedkd/spec/schema/simulated.py", "pulses", "the families of FAMILIES are not those of Simulated.kind"),
    ("stagedkd/spec/families.py", "pulses", "the families of FAMILIES are not those of Simulated.kind"),
    ("stagedkd/data/simulate/__init__.py", "FAMILIES", "the families of FAMILIES are not those of spec/families.py"),
]

# Each scenario is a fork of one process that has torch already: the changed files, then the code that meets them.
DRIVER = """\
import json, os, sys, traceback
from pathlib import Path
import pydantic, torch
results = []
for files, code in json.load(sys.stdin):
    before = {path: (Path(path).read_text("utf-8"), os.stat(path)) for path in files}
    for path, text in files.items():
        Path(path).write_text(text, "utf-8")
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        os.dup2(theirs, 1), os.dup2(theirs, 2)
        sys.dont_write_bytecode, status = bool(files), 0
        try:
            exec(code, {"__name__": "scenario"})
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    os.close(theirs)
    said = os.fdopen(ours).read()
    results.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said])
    for path, (text, stat) in before.items():
        Path(path).write_text(text, "utf-8")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
print(json.dumps(results))
"""


def without(root: Path, left_out: Callable[[Block], bool]) -> dict[str, str]:
    """The text of each file of the package that a left-out block belongs to, with all other blocks in it. New files
    stay: nothing imports them."""
    texts: dict[str, str] = {}
    for path in {block.path for block in blocks() if left_out(block) and block.place != "new file"}:
        scratch = root / "scratch" / path
        scratch.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / path, scratch)
        for block in blocks():
            if block.path == path and not left_out(block):
                put(root / "scratch", block)
        texts[path] = scratch.read_text("utf-8")
        shutil.rmtree(root / "scratch")
    return texts


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """Exit code and output of: everything followed; each place of FORGOTTEN left out; the layout in no union."""
    root = copy_of_package(tmp_path_factory.mktemp("extended"))
    scenarios = [({}, LOAD_ALL)]
    scenarios += [(without(root, leaving_out(path, part)), IMPORT_ALL) for path, part, _ in FORGOTTEN]
    scenarios += [(without(root, lambda b: b.section == "A data layout" and b.path.startswith("stagedkd/")), CHECK)]
    found = call(root, "-c", DRIVER, given=json.dumps(scenarios))
    assert found.returncode == 0, found.stderr
    return [(code, said) for code, said in json.loads(found.stdout)]


def test_with_the_guide_followed_everything_imports_and_every_spec_compiles(outcomes: list[tuple[int, str]]) -> None:
    code, said = outcomes[0]
    assert code == 0, said
    assert said.splitlines() == [
        "c3d c3d shapes ce kd hint",
        "cosine resnet3d shapes ce kd cosine",
        "diving48 resnet3d diving48 ce kd",
        "mirrored resnet3d shapes ce kd",
        "pulses resnet3d pulses ce kd",
        "small resnet3d shapes ce kd",
    ]


def test_a_forgotten_place_fails_at_import(outcomes: list[tuple[int, str]]) -> None:
    for (path, part, message), (code, said) in zip(FORGOTTEN, outcomes[1:-1], strict=True):
        assert code == 1 and message in said, (path, part, said)


def test_a_layout_that_is_in_no_union_is_unknown(outcomes: list[tuple[int, str]]) -> None:
    code, said = outcomes[-1]
    assert code == 2 and "diving48" in said and "data.kind" in said.replace("'", ""), said


# ---------------------------------------------------------------- its commands and its types


def put_videos(root: Path) -> None:
    """Videos in the layout of the guide's example."""
    home = root / "data" / "diving48"
    (home / "rgb").mkdir(parents=True)
    for part, count in (("train", 20), ("test", 8)):
        rows = [{"vid_name": f"{part}{i}", "label": (31, 7)[i % 2]} for i in range(count)]
        for row in rows:
            write_video(home / "rgb" / f"{row['vid_name']}.mp4", 8, noisy=True)
        (home / f"Diving48_V2_{part}.json").write_text(json.dumps(rows), "utf-8")


@pytest.mark.slow
def test_the_commands_of_the_guide_run(tmp_path: Path) -> None:
    root = copy_of_package(tmp_path)
    put_videos(root)
    said: dict[str, str] = {}
    for section in MOST_FILES:
        for _, *arguments in commands(section):
            found = call(root, "-m", "stagedkd.cli", *arguments)
            assert found.returncode == 0, (section, arguments, found.stdout, found.stderr)
            said[section] = said.get(section, "") + found.stdout
    assert all("joint 1/1: ce " in said[section] for section in ("A loss", "A launcher")), "the example of a sink"
    assert "tally" in said["A kind of work"]
    assert "teacher.mirror" in said["A guide"] and re.search(r"^ 7 .*\n 31 ", said["A data layout"], re.M)


TOUCHED = sorted({block.path for block in blocks() if block.path.startswith("stagedkd/")})


def pyright(root: Path, files: Sequence[str]) -> subprocess.CompletedProcess[str]:
    settings = {"include": list(files), "pythonVersion": "3.11", "typeCheckingMode": "standard"}
    settings |= {"strict": ["stagedkd/spec", "stagedkd/plan", "stagedkd/stages", "stagedkd/launch", "stagedkd/train"]}
    settings |= {"reportMissingTypeStubs": False}
    (root / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    return call(root, "-m", "pyright", "--pythonpath", sys.executable)


@pytest.mark.slow
def test_the_blocks_of_the_guide_pass_pyright_and_ruff(tmp_path: Path) -> None:
    root = copy_of_package(tmp_path)
    found = pyright(root, TOUCHED)
    assert found.returncode == 0, found.stdout
    shutil.copy(REPO / "pyproject.toml", root)
    found = call(root, "-m", "ruff", "check", ".", "--no-cache")
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_a_forgotten_case_is_told_by_pyright(tmp_path: Path) -> None:
    """The cases of all closed unions are left out at once, and pyright names each file."""
    cases = {
        "stagedkd/models/build.py": "C3dArch",
        "stagedkd/data/layouts/__init__.py": "Diving48",
        "stagedkd/stages/stage.py": "TallyWork",
        "stagedkd/experiment/run.py": "Literal['fresh']",
    }
    root = copy_of_package(tmp_path, lambda block: block.path in cases and block.text.lstrip().startswith("case "))
    found = pyright(root, list(cases))
    for path, missing in cases.items():
        rows = [row for row in found.stdout.splitlines() if path in row and "error" in row]
        assert any("Never" in row or missing in row for row in rows), (path, found.stdout)
