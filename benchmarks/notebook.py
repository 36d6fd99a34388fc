"""Execute docs/quickstart.ipynb and write it back with its outputs (`make notebook`): four to five minutes, two cores.

It runs in a copy of specs/ and params.yaml, so no store and no results of yours are used or changed. The outputs hold
no times, no paths and no name of the machine. The digest of the code cells is kept beside the outputs, so that a test
sees code that was edited afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

REPO = Path(__file__).resolve().parent.parent
NOTEBOOK = REPO / "docs" / "quickstart.ipynb"
SHOWN = ("text/html", "image/svg+xml", "image/png", "text/plain")  # a front end shows the first one; the others go
LATENCY = re.compile(r">[\d.,]+ ms<")  # a cell of the table of networks
MACHINE = re.compile(r"note: (threads: |.*: its latency )")


def code_digest(notebook: Any) -> str:
    """The SHA-256 of the code cells, in order."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()


def execute(folder: Path, overrides: Sequence[str] = ()) -> Any:
    """Execute the notebook in a new project in `folder` and return it with its outputs.

    Args:
        overrides: of the spec; the cell with the tag `parameters` gets them, as papermill would set them.
    Raises:
        CellExecutionError: a cell failed.
    """
    (folder / "docs").mkdir(parents=True)
    shutil.copytree(REPO / "specs", folder / "specs")
    shutil.copy(REPO / "params.yaml", folder)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    if overrides:
        parameters.source = f"overrides = {list(overrides)!r}"
    with tempfile.TemporaryDirectory() as sockets:
        client = NotebookClient(
            notebook,
            timeout=1800,
            startup_timeout=300,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder / "docs")}},
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),  # no ports
        )
        client.execute()
    return notebook


def text_of(notebook: Any) -> str:
    """The text of the file, without what differs from one machine or run to the next."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = "".join(line for line in output.text.splitlines(True) if not MACHINE.match(line))
            elif output.output_type in ("execute_result", "display_data"):
                shown = next(kind for kind in SHOWN if kind in output.data)
                output.data = {shown: output.data[shown]}
                if shown == "text/html":
                    output.data[shown] = LATENCY.sub(">-<", output.data[shown])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "stagedkd": {"code": code_digest(notebook)},
    }
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], help="an override of the spec, for a try")
    parser.add_argument("--out", type=Path, default=NOTEBOOK)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = text_of(execute(Path(folder) / "project", options.set))
        if folder in text or str(REPO) in text:
            raise SystemExit("an output has a path of this machine; nothing was written")
    options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
