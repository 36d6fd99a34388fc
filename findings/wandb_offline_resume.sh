#!/usr/bin/env bash
# wandb 0.31.0: an offline run is never resumed, not with a fixed id and resume="must" either, and not a word is said.
#
# Expected: the second wandb.init with the id of a run on this disk continues it (resume="must"), or fails.
# Seen: both calls start at step 0 with run.resumed False, the first one too, where there is nothing to resume. Each
# leaves a folder offline-run-<time>-<id> of its own, and steps that both logged are in both files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" wandb==0.31.0
cd "$folder"
WANDB_ERROR_REPORTING=false "$folder/env/bin/python" - <<'PYTHON'
from pathlib import Path

import wandb

for steps in ((3, 6), (6, 9)):
    settings = wandb.Settings(silent=True, console="off")
    run = wandb.init(project="p", id="one", mode="offline", resume="must", settings=settings)
    print(f"resumed: {run.resumed}, first step: {run.step}")
    assert not run.resumed and run.step == 0, "wandb has changed"
    for step in steps:
        run.log({"loss": 1 / step}, step=step)
    run.finish()
folders = sorted(path.name for path in Path("wandb").glob("offline-run-*-one"))
print(f"folders of the run: {len(folders)}")
assert len(folders) == 2, "wandb has changed"
PYTHON
