"""Puts the pages of docs/ into wheels, for `stagedkd docs`. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPages(build_py):
    """Builds the package with the pages below it, in stagedkd/docs. An editable install reads them beside it."""

    def run(self) -> None:
        super().run()
        pages = sorted(Path("docs").rglob("*.md"))
        if not pages and not self.editable_mode:
            raise SystemExit("docs/ has no pages: build the wheel in the whole folder of stagedkd")
        for page in [] if self.editable_mode else pages:
            target = Path(self.build_lib, "stagedkd", page)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, target)


setup(cmdclass={"build_py": BuildWithPages})
