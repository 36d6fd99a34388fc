#!/usr/bin/env bash
# hydra-core 1.3.2 with omegaconf 2.3.1: a value means one thing in a file and another on the command line.
#
# Expected: `lr: 012` in config.yaml and `lr=012` as an override are the same setting.
# Seen: files go through PyYAML's YAML 1.1 (with a repaired float), overrides through a grammar of Hydra's own.
# So `no` is false and 'no', `012` is 10 and '012', `12:30` is 750 and '12:30', `0x1f` is 31 and '0x1f',
# `nan` is the string 'nan' and the number nan, and `~` is null and an error. `1e-3`, `1_000` and `true` agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q hydra-core==1.3.2 omegaconf==2.3.1
"$folder/env/bin/python" - <<'PYTHON'
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

PARSER = OverridesParser.create()
EXPECTED = {  # text: (in a file, as an override)
    "no": (False, "no"),
    "on": (True, "on"),
    "012": (10, "012"),
    "0x1f": (31, "0x1f"),
    "0b11": (3, "0b11"),
    "12:30": (750, "12:30"),
    "~": (None, "error"),
    "1e-3": (0.001, 0.001),
    "1_000": (1000, 1000),
    "true": (True, True),
}


def override(text: str) -> object:
    try:
        return PARSER.parse_override(f"x={text}").value()
    except HydraException:
        return "error"


seen = {text: (OmegaConf.create(f"x: {text}").x, override(text)) for text in EXPECTED}
for text, (in_file, on_line) in seen.items():
    print(f"{text:>6}: {in_file!r:>8} in a file, {on_line!r:>8} on the command line")
nan = (OmegaConf.create("x: nan").x, override("nan"))
print(f"   nan: {nan[0]!r:>8} in a file, {nan[1]!r:>8} on the command line")
assert seen == EXPECTED and nan[0] == "nan" and isinstance(nan[1], float), "hydra or omegaconf has changed"
PYTHON
