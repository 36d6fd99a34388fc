"""A demo's page in headless Chromium, served as `python -m http.server` does it."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STATES = ("ready", "refused", "done", "failed")
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
