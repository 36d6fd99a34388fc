"""What run.json says of code, packages and machine, of stages made in pieces too, and what `reproduce` makes of it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from stagedkd.experiment.reproduce import environment_differences
from stagedkd.report.housekeeping import rebuilt_lines
from stagedkd.stages import provenance as machine
from stagedkd.stages.provenance import (
    describe_environments,
    differences,
    read_environments,
    several_environments,
    write_environments,
)
from stagedkd.store.rebuilt import Rebuilt

RUN: dict[str, Any] = {
    "stagedkd": "0.1.0",
    "code": "c0de",
    "python": "3.11.9",
    "machine": "Linux x86_64",
    "cpu": "Xeon 8488C",
    "cpu_capability": "AVX512",
    "device": "cpu",
    "device_name": "Xeon 8488C",
    "threads": 1,
    "gpus": 1,
    "compile": False,
    "packages": {"numpy": "2.1", "torch": "2.15"},
}
SAME_AS_THERE = "code, packages, hardware, device and threads equal those in the original's run.json"


def said(there: dict[str, dict[str, Any] | None], here: dict[str, dict[str, Any] | None]) -> str:
    """The last line of what `reproduce` prints where bits differ."""
    found = Rebuilt(tuple(there), {"it": ("it differs",)}, (), environment_differences(there, here))
    return list(rebuilt_lines(found))[-1]


def test_the_same_environment_is_said_to_be_the_same() -> None:
    assert said({"a": RUN, "b": RUN}, {"a": dict(RUN), "b": dict(RUN)}) == SAME_AS_THERE
    assert "are unknown" in said({"a": None}, {"a": RUN})


@pytest.mark.parametrize("name", [*RUN, "numpy"])
def test_whatever_differs_or_is_not_known_is_named(name: str) -> None:
    """Packages, too; and nothing is said to be the same that is not known."""
    other = {**RUN, name: "other"} if name in RUN else {**RUN, "packages": {"numpy": "1.9", "torch": "2.15"}}
    if name != "packages":
        line = said({"a": RUN, "b": RUN}, {"a": RUN, "b": other})
        assert line.startswith(f"the environment differs: {name}: ") and line.endswith(" here")
    less = {key: value for key, value in RUN.items() if key != name}
    less["packages"] = {} if name == "packages" else {k: v for k, v in RUN["packages"].items() if k != name}
    for there, here in ((less, RUN), (RUN, less)):
        assert f"{name}: " in said({"a": RUN, "b": there}, {"a": RUN, "b": here})
    assert differences(RUN, dict(RUN)) == []


def test_a_stage_without_run_json_is_not_said_to_be_the_same() -> None:
    assert said({"a": RUN, "b": None}, {"a": RUN, "b": RUN}) == (
        "the environment differs: b: unknown there, since its run.json is missing"
    )


def test_pieces_are_told_by_what_differs(tmp_path: Path) -> None:
    pieces = [{**RUN, "gpus": 2, "code": "old"}, {**RUN, "gpus": 2}, RUN]
    made = "gpus: 2, then code: c0de, gpus: 2, then code: c0de, gpus: 1"
    assert describe_environments({**RUN, "began": pieces}) == "code: old, " + made
    newer = {**RUN, "packages": {"numpy": "2.1", "torch": "2.16"}}
    assert describe_environments({**RUN, "began": [RUN, newer]}) == "torch: 2.15, then torch: 2.16"
    assert describe_environments({**RUN, "began": [{}, RUN]}) == "unknown, then what run.json says"
    assert describe_environments(RUN) == ""
    two = "the original a was made in several environments: gpus: 2, then gpus: 1"
    assert said({"a": {**RUN, "began": pieces[1:]}}, {"a": RUN}) == f"the environment differs: {two}"
    rebuilt = said({"a": RUN}, {"a": {**RUN, "began": pieces[1:]}})
    assert rebuilt == f"the environment differs: {two.replace('original', 'rebuilt')}"

    assert read_environments(tmp_path) == [] and several_environments(tmp_path) == {}
    write_environments(tmp_path, pieces[1:])
    assert read_environments(tmp_path) == []  # there is no checkpoint to go on from: it starts anew
    (tmp_path / "checkpoint.pt").touch()
    assert read_environments(tmp_path) == pieces[1:] and several_environments(tmp_path) == {"began": pieces[1:]}
    write_environments(tmp_path, [RUN])
    assert several_environments(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["", '[{"gpus": 1, "thr', "null", "[]", "[1]", '[{"threads": 1}]', '{"ranks": 2}', None]
)
def test_a_file_that_cannot_be_read_is_a_beginning_of_which_nothing_is_known(tmp_path: Path, text: str | None) -> None:
    """A kill may have left it empty; that must not end the stage for ever."""
    (tmp_path / "checkpoint.pt").touch()
    if text is not None:
        (tmp_path / "began.json").write_text(text, "utf-8")
    assert read_environments(tmp_path) == [{}]


def test_the_cpu_has_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [line for line in _cpuinfo() if line.startswith("model name")]
    assert machine.cpu() == (listed[0].split(": ")[1].strip() if listed else platform.processor() or platform.machine())
    assert machine.environment()["cpu"] == machine.cpu()
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert machine.cpu() == "arm"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text("utf-8").splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ((), False),
        (("threads: 4 there, 2 here",), False),
        (("cpu_capability: AVX512 there, AVX2 here",), False),
        (("cpu_capability: AVX2 there, DEFAULT here",), False),
        (("caches: unknown there, L1d 32K here",), False),
        (("cpu_capability: unknown there, AVX512 here",), True),
        (("cpu_capability: AVX2 there, AVX512 here",), True),
        (("student: unknown there, since its run.json is missing",), True),
        (None, True),
    ],
)
def test_a_rebuild_on_a_newer_cpu_is_told_how_to_have_the_kernels_of_the_older_one(
    environment: tuple[str, ...] | None, told: bool
) -> None:
    hint = Rebuilt((), {}, (), environment).hint
    assert bool(hint) == (environment != ())
    assert ("ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2" in hint) == told
