#!/usr/bin/env bash
# trackio 0.43.0: a run that is logged to a local folder asks the Hugging Face hub for the user's name, and keeps it in
# the run's configuration.
#
# Expected: trackio.init without a Space or a server speaks to nobody.
# Seen: if the user is logged in there, it asks /api/whoami-v2 and waits for the answer. With HF_HUB_OFFLINE=1 it does
# not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" trackio==0.43.0
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

asked = []


class Hub(BaseHTTPRequestHandler):
    """Stands for the hub: it notes every request."""

    def do_GET(self):
        asked.append(self.path)
        body = json.dumps({"name": "someone"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


hub = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
code = "import trackio; run = trackio.init('p', name='x'); run.log({'a': 1}); run.finish(); print(run.config)"
ours = {"HF_ENDPOINT": "http:" + f"//127.0.0.1:{hub.server_port}", "HF_TOKEN": "hf_example", "TRACKIO_DIR": "local"}


def run(**more):
    """The requests of a local run, and what it says of the user."""
    asked.clear()
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | ours | more, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return list(asked), "someone" in found.stdout


online, offline = run(), run(HF_HUB_OFFLINE="1")
print(f"requests of a local run: {online[0]}, with HF_HUB_OFFLINE=1: {offline[0]}")
assert "/api/whoami-v2" in online[0] and online[1], "trackio has changed"
assert offline == ([], False), "trackio has changed"
PYTHON
