#!/usr/bin/env bash
# torch 2.15.0: `torch.load` does not compare a tensor with the checksum that its file holds.
#
# Expected: a .pth file is a zip archive with a CRC-32 for each tensor, so a bit that a disk or a copy has flipped is an
# error when the file is loaded, as it is for Python's own zipfile.
# Seen: zipfile names the damaged member, torch.load returns the wrong number without a word, also with
# weights_only=True. A hash of the whole file is the only witness.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.15.0 numpy==2.2.6
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import zipfile
from pathlib import Path

import torch

numbers = torch.arange(1000, dtype=torch.float32)
torch.save({"weight": numbers}, "whole.pth")
content = bytearray(Path("whole.pth").read_bytes())
place = content.index(numbers.numpy().tobytes()) + 4 * 100 + 3  # the highest byte of the hundredth number
content[place] ^= 0x40
Path("flipped.pth").write_bytes(content)
damaged = zipfile.ZipFile("flipped.pth").testzip()
loaded = torch.load("flipped.pth", weights_only=True)["weight"]
wrong = int((loaded != numbers).sum())
print(f"zipfile says {damaged} is damaged; torch.load gives {loaded[100].item()} for 100 ({wrong} number differs)")
assert damaged is not None and wrong == 1, "torch has changed"
PYTHON
