"""README and the pages that it leads to say what is so: the error, the commands, the tree, the spec, the ablation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stagedkd as package
from stagedkd import load_spec
from stagedkd.cli import app
from stagedkd.cli.data import app as data_app
from stagedkd.cli.dvc import app as dvc_app
from stagedkd.cli.store import app as store_app
from stagedkd.errors import SpecError
from stagedkd.plan.compile import compile_experiment
from stagedkd.spec.load import load_experiment
from stagedkd.spec.yaml import parse_yaml
from tests.conftest import REPO, Command

README = (REPO / "README.md").read_text("utf-8")
ERRORS = (REPO / "docs" / "errors.md").read_text("utf-8")
COMMANDS = (REPO / "docs" / "commands.md").read_text("utf-8")
ABLATIONS = (REPO / "docs" / "how-to" / "ablations.md").read_text("utf-8")
CONTRIBUTING = (REPO / "docs" / "contributing.md").read_text("utf-8")
LONGEST = 100  # lines: one screen and a half


def test_the_error_is_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPO / "specs/quickstart.yaml").read_text("utf-8").replace("temperature: 4", "temprature: 4")
    (tmp_path / "specs").mkdir()
    shutil.copy(REPO / "specs" / "quickstart.tuned.yaml", tmp_path / "specs")
    (tmp_path / "specs" / "quickstart.yaml").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        load_spec("specs/quickstart.yaml")
    assert caught.value.render() in ERRORS


def test_every_command_is_there(stagedkd: Command) -> None:
    listed = re.findall(r"^\| \[`((?:data|dvc|store) \w+|\w+)`\]", COMMANDS, re.MULTILINE)
    usage = dict(re.findall(r"^```\nstagedkd ((?:data|dvc|store) \w+|\w+)([^\n]*)\n```$", COMMANDS, re.MULTILINE))
    there = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for group, below in (("data", data_app), ("dvc", dvc_app), ("store", store_app)):
        registered = [command for command in below.registered_commands if command.callback]
        there |= {f"{group} {command.name or command.callback.__name__}" for command in registered if command.callback}
    assert there == set(listed) == usage.keys() and len(there) >= 25
    for name, arguments in usage.items():
        found = stagedkd(*name.split(), "--help")
        assert found.returncode == 0
        takes_spec = (
            arguments.startswith(" SPEC") or " A [B]" in arguments
        ) and name != "tune"  # it tunes the file as it is
        assert ("--set" in found.stdout and "--cell" in found.stdout) == takes_spec, name


def test_readme_is_short_and_its_commands_exist() -> None:
    assert len(README.splitlines()) <= LONGEST
    shown = re.findall(r"^stagedkd (\w+)(?: (\w+))?", README, re.MULTILINE) + re.findall(r"`stagedkd (\w+)()`", README)
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert len(shown) >= 6 and {name for name, _ in shown} <= names | {"data", "dvc", "store"}


def test_the_spec_in_short_is_the_quickstart(tmp_path: Path) -> None:
    (short,) = re.findall(r"```yaml\n# specs/quickstart.yaml, in short\n(.*?)```", README, re.DOTALL)
    (tmp_path / "quickstart.yaml").write_text(short, "utf-8")
    full = load_spec(REPO / "specs" / "quickstart.yaml")
    assert load_spec(tmp_path / "quickstart.yaml") == full.model_copy(update={"augment": type(full.augment)()})


def test_the_ablation_is_the_shipped_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n# specs/ablations/losses.yaml\n(.*?)```", ABLATIONS, re.DOTALL)
    shipped = (REPO / "specs" / "ablations" / "losses.yaml").read_text("utf-8")
    assert parse_yaml(shown, "x").plain() == parse_yaml(shipped, "x").plain()
    plans = compile_experiment(load_experiment(REPO / "specs" / "ablations" / "losses.yaml"))
    total = sum(len(plan.stages) for plan in plans.cells.values())
    assert (
        f"makes {len(plans.unique)} stages for its {len(plans.cells)} cells where one by one they would be {total}"
        in ABLATIONS
    )


def test_the_examples_of_the_language_page_are_valid(tmp_path: Path) -> None:
    text = (REPO / "docs" / "language.md").read_text("utf-8")
    blocks = [b for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "extends" in b]
    assert len(blocks) == 2
    (tmp_path / "params.yaml").write_text("runtime: {}\n", "utf-8")
    (tmp_path / "specs").mkdir()
    for name in ("quickstart.yaml", "quickstart.tuned.yaml"):
        shutil.copy(REPO / "specs" / name, tmp_path)
    for i, block in enumerate(blocks):
        (tmp_path / "specs" / f"example{i}.yaml").write_text(block, "utf-8")
        assert load_experiment(tmp_path / "specs" / f"example{i}.yaml").cells


def test_the_tree_names_every_folder() -> None:
    folders = {p.name for p in (REPO / "stagedkd").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(re.findall(r"^  (\w+)/ ", CONTRIBUTING, re.MULTILINE))
    targets = set(re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in (README, CONTRIBUTING):
        named = set(re.findall(r"^make ([\w-]+)|`make ([\w-]+)`", page, re.MULTILINE))
        assert named and {first or second for first, second in named} <= targets


def test_the_public_names_are_pinned() -> None:
    assert package.__all__ == [
        "Listener",
        "Silent",
        "__version__",
        "compile_plan",
        "load_spec",
        "load_student",
        "report",
        "run",
        "write_report",
    ]
    for first in ("pass", "import stagedkd.report.write", "import stagedkd.report.statistics"):
        code = f"{first}; import stagedkd; from stagedkd import run, report; assert callable(report) and callable(run); import stagedkd.report.collect; assert callable(stagedkd.report)"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
    from stagedkd import compile_plan, report, run

    assert all(function.__doc__ for function in (compile_plan, load_spec, report, run))


def test_nothing_names_a_registry_or_a_path_of_ours() -> None:
    text = (REPO / "requirements.txt").read_text("utf-8")
    assert "://" not in text and "--index" not in text and text.count("--hash=sha256:") > 500
    assert not re.search(r"^stagedkd", text, re.MULTILINE)
