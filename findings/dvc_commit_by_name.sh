#!/usr/bin/env bash
# dvc 3.67.1: committing stages by name takes time that grows with the square of their number; committing them all at
# once does not, but one missing output discards it for all of the file's stages.
#
# Expected: `dvc commit a b c` costs about what `dvc commit` costs for the same stages, and does the same.
# Seen: each named stage reads and writes the whole dvc.lock: 80 stages take 25 s of CPU time by name, 40 take 9 s, and
# all 80 in one call without names 2 s. By name, the stages in front of one whose output is missing are recorded; without
# names none is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" dvc==3.67.1
export PATH="$folder/env/bin:$PATH"
mkdir "$folder/project"
cd "$folder/project"
git init -q
dvc init -q
python - <<'PYTHON'
import resource
import subprocess
from pathlib import Path

COUNT = 40
NAMES = [f"s{i}" for i in range(COUNT)]
LOCK = Path("dvc.lock")
rows = [f"  s{i}:\n    cmd: echo {i} > out{i}\n    outs:\n    - out{i}\n" for i in range(COUNT)]
Path("dvc.yaml").write_text("stages:\n" + "".join(rows))
for i in range(COUNT):
    Path(f"out{i}").write_text(f"{i}\n")


def commit(*names: str) -> tuple[float, int, bool]:
    """CPU seconds of a commit without a lock before it, the number of stages recorded, and whether it succeeded."""
    LOCK.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(["dvc", "commit", "-f", "-q", *names], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, LOCK.read_text().count("cmd:") if LOCK.exists() else 0, done.returncode == 0


start = commit("s0")[0]
half, whole, once = commit(*NAMES[: COUNT // 2]), commit(*NAMES), commit()
Path(f"out{COUNT - 1}").unlink()
named, unnamed = commit("s0", "s1", NAMES[-1]), commit()
print(f"CPU seconds beyond one stage's: {COUNT // 2} by name {half[0] - start:.1f}, {COUNT} by name {whole[0] - start:.1f}, "
      f"{COUNT} without names {once[0] - start:.1f}")
print(f"one output missing: by name {named[1]} stages recorded, without names {unnamed[1]}")
assert half[1:] == (COUNT // 2, True) and whole[1:] == once[1:] == (COUNT, True)
assert whole[0] - start > 2.5 * (half[0] - start) and whole[0] > 2 * once[0], "dvc has changed"
assert named[1:] == (2, False) and unnamed[1:] == (0, False), "dvc has changed"
PYTHON
