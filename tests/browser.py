"""Pages in headless Chromium, served as `python -m http.server` does it, and axe-core to judge them."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STATES = ("ready", "refused", "done", "failed")
AXE = "axe-core@4.14.1"
AXE_SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
Page = Any  # of playwright, which has no part in a plain install


class Quiet(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` answers with."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine. Gives its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()


@contextmanager
def opened(address: str, *options: str) -> Iterator[Page]:
    """Open a page. At the end, no request has left this machine. The test is skipped without a browser."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    requests: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *options])
        tab = browser.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(address)
        yield tab
        browser.close()
    assert requests and not [url for url in requests if not url.startswith((address, "blob:" + address, "data:"))]


def results(page: Page, *states: str) -> dict[str, Any]:
    """What the page has shown, when it is in one of these states."""
    until = time.monotonic() + 120
    while page.evaluate("stagedkdResults.state") not in states:
        assert time.monotonic() < until, page.evaluate("stagedkdResults")
        time.sleep(0.05)
    return page.evaluate("({...stagedkdResults, clip: Array.from(stagedkdResults.clip ?? [])})")


@functools.cache
def axe_source(folder: Path) -> str:
    """The script of axe-core, which npm fetches into a folder. The test is skipped where it cannot."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, and axe-core comes from it")
    command = [npm, "pack", AXE, "--pack-destination", str(folder), "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    archive = folder / f"{AXE.replace('@', '-')}.tgz"
    if done.returncode or not archive.is_file():
        pytest.skip(f"npm cannot fetch {AXE}")
    content = archive.read_bytes()
    assert base64.b64encode(hashlib.sha512(content).digest()).decode("ascii") == AXE_SHA512
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as files:
        member = files.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode("utf-8")


def violations(page: Page, axe: str) -> list[str]:
    """What axe-core finds wrong with a page: rule and element."""
    page.evaluate(axe)  # as a debugger does, so that the policy of the page does not matter
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found["violations"] for node in rule["nodes"]]
