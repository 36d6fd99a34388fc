#!/usr/bin/env bash
# safetensors 0.8.0: equal tensors and equal metadata do not give equal bytes.
#
# Expected: a format that is praised for being simple writes the same file for the same content.
# Seen: the header holds the metadata in the order of a hash map that is seeded anew for each call. With six entries,
# ten calls in one process give ten (or nearly ten) different files; with one entry all files are equal. Tensor names
# are sorted. So who hashes weight files, or hands them to DVC, keeps one metadata entry (or hashes the tensors).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q safetensors==0.8.0 numpy==2.2.6
"$folder/env/bin/python" - <<'PYTHON'
import hashlib

import numpy as np
from safetensors.numpy import save

tensors = {"b": np.zeros(4, np.float32), "a": np.ones(4, np.float32)}


def files(entries: int) -> set[str]:
    metadata = {f"key{i}": "value" for i in range(entries)}
    return {hashlib.sha256(save(tensors, metadata=metadata)).hexdigest()[:12] for _ in range(10)}


one, six = files(1), files(6)
names = [save(tensors)[8:].index(f'"{name}"'.encode()) for name in ("a", "b")]
print(f"different files of ten: {len(one)} with one metadata entry, {len(six)} with six; tensors sorted: {names == sorted(names)}")
assert len(one) == 1 and len(six) >= 5 and names == sorted(names), "safetensors has changed"
PYTHON
