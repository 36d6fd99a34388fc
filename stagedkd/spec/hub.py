"""What `model:` of an `arch: hf` network is: a folder of the project, told by its content, or an id of the hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")
HUB = "hub:"  # before the id in a digest


def put_model_digest(network: dict[str, Any], root: Path, digest_of: Callable[[Path], str | None]) -> tuple[str, str]:
    """Put the digest of a network's `model` into its values. Nothing is imported or fetched.

    Args:
        network: the values of an `arch: hf` network, not validated yet.
        root: the project's folder.
        digest_of: SHA-256 of a file below the root, None where it is not there or not ours to read.
    Returns:
        (fault, hint), both "" where there is none.
    """
    name = network.get("model")
    if not isinstance(name, str) or not name:
        return "", ""  # for validation to refuse
    folder = root / name
    if not _is_folder(folder):
        network["digest"] = HUB + name
        hint = "a folder with config.json, or an id such as owner/name"
        return ("", "") if HUB_ID.match(name) else (f"{name} is no folder below the specs' root", hint)
    files = [folder / "config.json"]
    if network.get("pretrained") is not False:  # weights that are not read change nothing
        files += sorted(folder.glob("*.safetensors"))
        if len(files) == 1:
            return f"{name} has no .safetensors files", "save_pretrained writes them; or set pretrained: false"
    found = {file.name: digest_of(file) for file in files}
    missing = [name for name, digest in found.items() if digest is None]
    if missing:
        return f"{name} has no {missing[0]} below the specs' root", "the folder is as save_pretrained writes it"
    text = "\n".join(f"{file} {digest}" for file, digest in found.items())
    network["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return "", ""


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False
