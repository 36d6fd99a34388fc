"""Specs: what is read, what is refused, and where the error points."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd import load_spec
from stagedkd.errors import SpecError, UsageError
from stagedkd.plan.compile import compile_plan
from stagedkd.spec.yaml import parse_yaml
from tests.conftest import REPO, TINY

SPECS = sorted((REPO / "specs").rglob("*.yaml"))


def test_every_shipped_spec_compiles() -> None:
    assert len(SPECS) >= 3
    for path in SPECS:
        plan = compile_plan(load_spec(path))
        assert plan.stage("student").work.kind == "distill" and plan.name == path.stem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("1.", 1.0), ("no", "no"), ("off", "off"), ("yes", "yes"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("010", 10), ("0o10", 8), ("0x1F", 31),
        ("1_000", "1_000"), ("12:30", "12:30"), ("2026-11-21", "2026-11-21"), ("'1'", "1"), ('"true"', "true"),
        (".inf", float("inf")), ("<<", "<<"), ("=", "="), ("+3", 3), ("0b1", "0b1"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_scalars_are_yaml_1_2(text: str, value: object) -> None:
    document = parse_yaml(f"a: {text}\n", "x.yaml")
    found = document.map["a"].value
    assert found == value and type(found) is type(value)


BROKEN = [  # what replaces what in the tiny spec, where the error stands (at ^), its words
    ("classes: 4", "clases: 4", "^clases", "unknown key 'data.clases'", "did you mean 'classes'?"),
    ("kind: shapes", "kind: shape", "{kind: ^shape,", "'data.kind' cannot be 'shape'", "did you mean 'shapes'?"),
    ("kind: shapes, ", "", "^data: {", "'data' needs 'kind'", "shapes, folder, csv, ucf101"),
    ("size: 16", "size: big", "^big", "'clip.size' must be a valid integer, not 'big'", ""),
    ("size: 16}", "size: 4}", "^4}", "'clip.size' must be greater than or equal to 8, not 4", ""),
    ("clean: 0.5", "clean: 0.9", "labels: ^{clean", "clean 0.9 and noisy 0.25 are more than 1 together", ""),
    ("rate: 0.5", "rate: 1.5", "^1.5", "'labels.noise.rate' must be less than or equal to 1, not 1.5", ""),
    ("lr: 1e-2", "lr: fast", "^fast", "'train.lr' must be a valid number, not 'fast'", ""),
    ("lr: 1e-2", "Lr: 1e-2", "^Lr", "unknown key 'train.Lr'", "did you mean 'lr'?"),
    ("labels: all", "labels: some", "^some", "must be 'same' or 'all', not 'some'", ""),
    ("arch: resnet3d, width: 8", "arch: resnet, width: 8", "^resnet,", "cannot be 'resnet'", "did you mean 'resnet3d'?"),
    ("width: 8, blocks", "widht: 8, blocks", "^widht", "unknown key 'teacher.widht'", "did you mean 'width'?"),
    ("cascade: [0.5]", "cascade: [1.5]", "cascade: [^1.5", "'cascade.0' must be less than 1", ""),
    ("cascade: [0.5]", "cascade: [{arch: resnet3d, widht: 3}]", "^widht", "'cascade.0.widht'", "did you mean 'width'?"),
    ("cascade: [0.5]", "cascade: some", "cascade: ^some", "'cascade' must be", ""),
    ("cascade: [0.5]", "cascade: [0.2, 0.5]", "^cascade: [0.2", "shares go from large to small", "[0.5, 0.2]"),
    ("layer1], [layer2]]", "layer9], [layer2]]", "^layer9", "there is no block 'layer9'", "stem, layer1, layer2"),
    ("layer1], [layer2]]", "layer1], [layer1, layer2]]", "[^layer1, l", "block 'layer1' is in substage 1", "do not overlap"),
    ("[[stem, layer1], [layer2]]", "[[stem], [layer2]]", "^substages: [[", "leaves out layer1", "in order: stem"),
    ("hint: 0.1", "hnit: 0.1", "^hnit", "losses.hnit'", "did you mean 'hint'?"),
    ("hint: 0.1", "kd: 0.1", "^kd: 0.1", "'kd' needs logits", "a phase over all substages"),
    ("hint: 0.1", "hint: -1", "^-1", "losses.hint' must be greater than 0", ""),
    ("losses: {gaussian_w2: 1.0, hint: 0.1}", "losses: {}", "losses: ^{}", "a phase needs at least one loss", ""),
    ("kd: 0.9", "kd: {weight: 0.9, temprature: 4}", "^temprature", "kd.temprature'", "did you mean 'temperature'?"),
    ("ema: 0.9", "ema: 1.5", "^1.5", "joint.train.ema' must be less than 1", ""),
    ("substages: one_by_one", "substages: [3]", "substages: [^3]", "there is no substage 3", "the student has 2"),
    ("control: ce", "control: kd", "^kd\n", "'control' must be 'ce', not 'kd'", ""),
    ("control: ce", "controll: ce", "^controll", "unknown key 'controll'", "did you mean 'control'?"),
    ("control: ce", "evaluate: {clips: 3}", "^evaluate", "a simulated clip has one view", ""),
    ("crop: 0.8", "flip: 0.5", "^flip", "left and right are classes", ""),
    ("epochs: 3}", "epochs: 0}", "^epochs: 0", "a teacher of 0 epochs needs weights", ""),
    ("arch: resnet3d, width: 8, blocks: [1, 1]", "arch: mvit_v2_s", "^arch: mvit", "runs at 16x224x224 only", "frames: 16"),
    ("arch: resnet3d, width: 8, blocks: [1, 1]", "arch: r3d_18, weights: K400", "^weights", "no weights", "KINETICS400_V1"),
    ("control: ce", "control: ce\ncontrol: ce", "^control: ce\n#", "'control' stands twice", "first at"),
    ("control: ce", "control: &x ce", "^&x", "anchors and aliases", "extends"),
    ("control: ce", "control: !!str ce", "^!!str", "tags are not read", ""),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "at", "message", "hint"), BROKEN)
def test_a_broken_spec_is_refused_at_its_place(
    tmp_path: Path, old: str, new: str, at: str, message: str, hint: str
) -> None:
    assert old in TINY
    path, text = tmp_path / "broken.yaml", TINY.replace(old, new, 1) + "# end\n"
    path.write_text(text, "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    problem = caught.value.problems[0]
    assert message in problem.message and hint in problem.hint, caught.value.render()
    before = text[: text.index(at.replace("^", "")) + at.index("^")]
    expected = (before.count("\n") + 1, len(before) - before.rfind("\n"))
    assert problem.place is not None and (problem.place.line, problem.place.column) == expected, caught.value.render()
    assert f"{path}:{expected[0]}:{expected[1]}" in caught.value.render()


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(TINY.replace("classes", "clases").replace("lr:", "lrr:").replace("hint", "hnit"), "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert [p.place.line for p in caught.value.problems if p.place] == [1, 5, 11]
    assert "3 errors" in caught.value.render()


def test_overrides_are_typed_like_the_file(project: Path) -> None:
    spec = load_spec("specs/tiny.yaml", ["train.lr=3e-3", "student.width=8", "distill.phases.joint.losses.kd=0.5"])
    assert spec.train.lr == 3e-3 and spec.student.model_dump()["width"] == 8
    kd = spec.distill.phases["joint"].losses.kd
    assert kd is not None and kd.weight == 0.5
    with pytest.raises(SpecError, match=r"unknown key 'train\.lrr'") as caught:
        load_spec("specs/tiny.yaml", ["train.lrr=1"])
    assert caught.value.problems[0].hint == "did you mean 'lr'?"
    for wrong in ("train.lr", "=3", "a..b=1"):
        with pytest.raises(UsageError, match=r"a\.b=c"):
            load_spec("specs/tiny.yaml", [wrong])


def test_ones_own_network_outside_the_root_is_refused(project: Path) -> None:
    with pytest.raises(SpecError, match="lies outside the specs' root"):
        load_spec("specs/tiny.yaml", ["student={arch: file, path: ../x.py, substages: [[a], [b]]}"])
    with pytest.raises(SpecError, match="no file nets"):
        load_spec("specs/tiny.yaml", ["student={arch: file, path: nets/x.py, substages: [[a], [b]]}"])


@pytest.mark.parametrize("text", ["", "- 1\n", "3\n", "a: 1\n---\nb: 2\n", "\t", "a: {b: [}\n", "? [a]\n: 1\n", "\x00"])
def test_what_is_no_spec_is_refused_without_a_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(SpecError):
        load_spec(path)


def test_limits(tmp_path: Path) -> None:
    for text in ("[" * 100 + "]" * 100, "a: [" + "1," * 25_000 + "1]", "a: '" + "x" * (1 << 20) + "'"):
        path = tmp_path / "large.yaml"
        path.write_text(text, "utf-8")
        with pytest.raises(SpecError):
            load_spec(path)
    (tmp_path / "latin.yaml").write_bytes("a: \xe9".encode("latin-1"))
    with pytest.raises(SpecError, match="not UTF-8"):
        load_spec(tmp_path / "latin.yaml")


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
                    max_leaves=12))  # fmt: skip
def test_what_yaml_writes_is_read_back(value: object) -> None:
    text = pyyaml.safe_dump({"value": value}, default_flow_style=False)
    found = parse_yaml(text, "x.yaml").plain()["value"]
    expected = _tuples(pyyaml.safe_load(text)["value"])
    assert found == expected or _differs_only_by_schema(text)


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _differs_only_by_schema(text: str) -> bool:
    """YAML 1.1 writes some plain scalars (base 60, dates, `=`) that the 1.2 core schema reads as strings."""
    import re

    return bool(re.search(r"\d:\d|^\s*-?\s*\S*:? ?[-+]?\d[\d_]*_|\d{4}-\d|=|<<|0b|0[0-7]+$", text, re.MULTILINE))
