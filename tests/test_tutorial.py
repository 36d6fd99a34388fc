"""docs/tutorial.md, followed: every command in order, in an empty folder, and its output beside what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, opened, results
from tests.conftest import REPO

PAGE = (REPO / "docs" / "tutorial.md").read_text("utf-8")
STEPS = re.findall(r"^```sh\n(.*?)^```\n(?:\n```\n(.*?)^```$)?", PAGE, re.MULTILINE | re.DOTALL)
SERVER = "python -m http.server"


def plain(line: str) -> str:
    """A line without numbers, keys and spacing: they differ between machines."""
    return " ".join(re.sub(r"\b[0-9a-f]{12}\b|\d+(?:[.,]\d+)*", "#", line).split())


def missing(shown: str, printed: str) -> list[str]:
    """The first line that the page shows and the command did not print, in order. `...` stands for anything."""
    lines = iter([plain(line) for line in printed.splitlines()])
    for line in shown.splitlines():
        if not line.strip(" ."):
            continue
        form = ".*".join(re.escape(part) for part in plain(line).split("..."))
        if not any(re.fullmatch(form, at) for at in lines):
            return [line]
    return []


def test_outputs_are_compared_without_numbers() -> None:
    printed = "note: a\n12 of 40 clips\nwrote results/x (1.5 kB; torch 2)\n"
    assert not missing("30 of 40 clips\n...\nwrote results/x (...)\n", printed)
    assert missing("30 of 40 videos\n", printed) and missing("wrote results/x (...)\n12 of 40 clips\n", printed)


def test_the_tutorial_has_every_step_and_shows_what_it_prints() -> None:
    called = {name for commands, _ in STEPS for name in re.findall(r"^stagedkd (\w+)", commands, re.MULTILINE)}
    assert called >= {"init", "check", "plan", "run", "show", "predict", "export", "bench", "demo"}
    assert sum(bool(shown) for _, shown in STEPS) >= 9


def environment(folder: Path) -> dict[str, str]:
    """An environment in which `stagedkd` and `python` are those of the test."""
    folder.mkdir()
    for name, module in (("stagedkd", " -m stagedkd"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{module} "$@"\n', "utf-8")
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(REPO), "STAGEDKD_DATA": ""}


def check_page(command: str, work: Path, env: dict[str, str]) -> None:
    """Serve the page as the tutorial says, fetch it, and, where there is a browser, let it predict the video."""
    command = command.replace("8000", "8765")
    server = subprocess.Popen(shlex.split(command), cwd=work, env=env, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                text = urllib.request.urlopen("http://localhost:8765/").read().decode()
                break
            except OSError:
                time.sleep(0.1)
        assert "stagedkd" in text
        if CHROMIUM:
            with opened("http://localhost:8765/") as page:
                assert results(page, "ready", "refused", "failed")["problem"] == ""
                page.set_input_files("#file", work / "left.mp4")
                assert results(page, "done", "failed")["windows"]
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_every_command_of_the_tutorial_works_and_prints_what_it_shows(tmp_path: Path) -> None:
    env, work = environment(tmp_path / "bin"), tmp_path
    for commands, shown in STEPS:
        if commands.startswith(SERVER):
            check_page(commands, work, env)
            continue
        if "stagedkd demo" in commands and shutil.which("npm") is None:
            pytest.skip("npm is not installed, and the page's runtime comes from it")
        made = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", commands],
            cwd=work,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if "npm cannot fetch" in made.stdout:
            pytest.skip("no network: " + made.stdout.splitlines()[0])
        assert made.returncode == 0, made.stdout
        assert not missing(shown, made.stdout), made.stdout
        work = tmp_path / "my_project"
