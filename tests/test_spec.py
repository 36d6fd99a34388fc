"""Specs: what is read, what is refused, and where the error points."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd import load_spec
from stagedkd.errors import SpecError, UsageError
from stagedkd.plan.compile import compile_experiment
from stagedkd.spec.load import Experiment, load_experiment
from stagedkd.spec.schema import Architecture
from stagedkd.spec.schema.networks import Resnet3dArch, TsmArch
from stagedkd.spec.yaml import parse_yaml, read_yaml
from tests.broken import BROKEN
from tests.conftest import OWN_NET, SPECS, TINY


def test_every_shipped_spec_compiles() -> None:
    assert len(SPECS) >= 7
    for path in SPECS:
        plans = compile_experiment(load_experiment(path))
        assert plans.name == path.stem
        compares = path.parent.name in ("ablations", "evidence") or "benchmark" in path.stem
        makes_weights = path.stem == "figures"  # of the teacher of actions.yaml
        assert plans.is_grid == (compares and not makes_weights)
        assert all(plan.stage("student").work.kind == "distill" for plan in plans.cells.values())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-11-21", "2026-11-21"),
        ("'1'", "1"),
        ('"true"', "true"),
        (".inf", float("inf")),
        ("<<", "<<"),
        ("=", "="),
        ("+3", 3),
        ("0b1", "0b1"),
        ("1e", "1e"),
    ],
)
def test_scalars_are_yaml_1_2(text: str, value: object) -> None:
    document = parse_yaml(f"a: {text}\n", "x.yaml")
    found = document.map["a"].value
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("old", "new", "at", "message", "hint"), BROKEN)
def test_a_broken_spec_is_refused_at_its_place(
    project: Path, old: str, new: str, at: str, message: str, hint: str
) -> None:
    assert old in TINY
    (project / "spec.yaml").write_text(TINY.replace(old, new, 1), "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec("spec.yaml")
    problem = caught.value.problems[0]
    found = (str(problem.place), problem.message, problem.hint)
    assert found == (f"spec.yaml:{at}", message, hint), caught.value.render()
    assert problem.render().startswith(f"error: {message}\n")


def test_the_table_is_long_enough() -> None:
    assert len(BROKEN) >= 90 and len({(old, new) for old, new, *_ in BROKEN}) == len(BROKEN)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(TINY.replace("classes", "clases").replace("lr:", "lrr:").replace("hint", "hnit"), "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert [p.place.line for p in caught.value.problems if p.place] == [1, 5, 11]
    assert "3 errors" in caught.value.render()


def test_ones_own_network_enters_by_its_content_and_only_from_the_project(project: Path) -> None:
    (project / "nets").mkdir()
    for name in ("a.py", "b.py"):
        (project / "nets" / name).write_text(OWN_NET, "utf-8")
    own = "student={{arch: file, path: nets/{}.py, substages: [[stem], [mid]]}}"
    sets = ["cascade=[]"]
    first, second = (load_spec("specs/tiny.yaml", [*sets, own.format(name)]).student.model_dump() for name in "ab")
    assert first["digest"] == second["digest"] == hashlib.sha256(OWN_NET.encode()).hexdigest()
    twice = [f"cascade=[{own.format('a').partition('=')[2]}]", own.format("a")]
    assert load_spec("specs/tiny.yaml", twice).student.model_dump()["digest"] == first["digest"]
    for path in ("../x.py", "nets/none.py", "nets", "x" * 300, "a\\0b"):
        with pytest.raises(SpecError, match="is not a file in the project"):
            load_spec(
                "specs/tiny.yaml", ["cascade=[]", f'student={{arch: file, path: "{path}", substages: [[a], [b]]}}']
            )
    with pytest.raises(SpecError, match="'digest' cannot be set"):
        load_spec(
            "specs/tiny.yaml", ["cascade=[]", "student={arch: file, path: nets/a.py, digest: x, substages: [[a], [b]]}"]
        )


def test_a_name_with_a_zero_byte_is_no_file(project: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a file"):
        read_yaml(project / "specs" / "a\0b.yaml")


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("import torch, json\nfrom torch import nn\nimport stagedkd.models\n", ""),
        ("def build(classes):\n    from parts import block\n", "parts"),
        ("import torch, blocks.deep as deep\n", "blocks"),
        ("import beside\n", "beside"),
        ("from . import parts\n", ""),  # Python refuses it when it is run
        ("import not_installed\n", ""),
        ("this is not Python", ""),
    ],
)
def test_own_code_imports_nothing_that_no_key_stands_for(project: Path, code: str, refused: str) -> None:
    (project / "nets" / ".venv").mkdir(parents=True)
    (project / "blocks").mkdir()
    for name in ("parts.py", "blocks/__init__.py", "nets/beside.py", "nets/.venv/not_installed.py"):
        (project / name).write_text("", "utf-8")
    (project / "nets" / "own.py").write_text(code, "utf-8")
    net = "student={arch: file, path: nets/own.py, params: 5000, substages: [[stem], [mid]]}"
    if not refused:
        load_spec("specs/tiny.yaml", ["cascade=[]", net])
        return
    with pytest.raises(SpecError, match=f"nets/own.py imports {refused} of the project") as caught:
        load_spec("specs/tiny.yaml", ["cascade=[]", net])
    assert "install it as a package" in caught.value.render()


def test_a_module_of_the_project_is_refused_even_where_another_of_its_name_is_found_first(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "blocks_of_mine.py").write_text("", "utf-8")
    monkeypatch.syspath_prepend(elsewhere)
    (project / "nets").mkdir(exist_ok=True)
    (project / "nets" / "own.py").write_text("import blocks_of_mine\n", "utf-8")
    net = "student={arch: file, path: nets/own.py, params: 5000, substages: [[stem], [mid]]}"
    load_spec("specs/tiny.yaml", ["cascade=[]", net])
    (project / "blocks_of_mine.py").write_text("", "utf-8")
    with pytest.raises(SpecError, match="imports blocks_of_mine of the project"):
        load_spec("specs/tiny.yaml", ["cascade=[]", net])


def test_a_network_of_unknown_blocks_is_not_cut_by_a_number_and_nothing_else_is_said(project: Path) -> None:
    net = "student={arch: file, path: nets/own.py, params: 5000, substages: 2}"
    (project / "nets").mkdir(exist_ok=True)
    (project / "nets" / "own.py").write_text("", "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", ["cascade=[]", net])
    assert [(p.message, p.hint) for p in caught.value.problems] == [
        ("its blocks are not known, so a number cannot cut it", "list the runs of its blocks")
    ]
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", ["student.substages=9", "distill.phases.joint.substages=[4]"])
    assert [p.message for p in caught.value.problems] == [
        "a number cuts this network into at most 2 substages, not 9: [stem, layer1], [layer2]"
    ]


def model_folder(at: Path, config: str = "{}", weights: bytes = b"w") -> None:
    at.mkdir(parents=True)
    (at / "config.json").write_text(config, "utf-8")
    (at / "model.safetensors").write_bytes(weights)


def test_a_model_of_transformers_enters_by_its_content_or_its_id(project: Path) -> None:
    def digest(model: str, more: str = "") -> str:
        made = load_spec(
            "specs/tiny.yaml",
            ["cascade=[]", f'teacher={{$replace: {{arch: hf, model: "{model}", layers: 2, epochs: 1{more}}}}}'],
        )
        found = made.teacher.model_dump()["digest"]
        assert isinstance(found, str) and found
        return found

    for name in ("a", "b", "c", "d"):
        model_folder(project / "nets" / name)
    (project / "nets/b/README.md").write_text("not read", "utf-8")
    (project / "nets/c/model.safetensors").write_bytes(b"x")
    (project / "nets/d/config.json").write_text("{} ", "utf-8")
    assert digest("nets/a") == digest("nets/b")
    assert len({digest(f"nets/{name}") for name in "acd"}) == 3
    random = ", pretrained: false"
    assert digest("nets/a", random) == digest("nets/c", random) != digest("nets/d", random)
    assert digest("nets/a", random) != digest("nets/a")
    assert len({digest("owner/name"), digest("owner/other"), digest("nets/a")}) == 3


def test_a_model_of_transformers_is_a_folder_of_the_project_or_an_id(project: Path) -> None:
    model_folder(project.parent / f"{project.name}-outside")
    (project / "empty").mkdir()
    model_folder(project / "bare")
    (project / "bare/model.safetensors").unlink()
    for name, words in [
        (f"../{project.name}-outside", "config.json of .* is missing or outside"),
        ("empty", "has no .safetensors files"),
        ("bare", "has no .safetensors files"),
        ("nowhere", "is not a folder in the project"),
        ("a/b/c", "is not a folder in the project"),
        ("x" * 300, "is not a folder in the project"),
        ("a\\0b", "is not a folder in the project"),
    ]:
        with pytest.raises(SpecError, match=words):
            load_spec(
                "specs/tiny.yaml", ["cascade=[]", f'student={{$replace: {{arch: hf, model: "{name}", layers: 2}}}}']
            )
    with pytest.raises(SpecError, match="'digest' cannot be set"):
        load_spec("specs/tiny.yaml", ["cascade=[]", "student={$replace: {arch: hf, model: a/b, layers: 2, digest: x}}"])
    load_spec(
        "specs/tiny.yaml", ["cascade=[]", "student={$replace: {arch: hf, model: bare, layers: 2, pretrained: false}}"]
    )
    with pytest.raises(SpecError, match=r"'student\.model' must be"):
        load_spec("specs/tiny.yaml", ["cascade=[]", "student={$replace: {arch: hf, model: 3, layers: 2}}"])


def test_a_model_with_weights_of_its_own_may_be_taken_as_it_is(project: Path) -> None:
    taken = "teacher={$replace: {arch: hf, model: a/b, layers: 3, epochs: 0%s}}"
    assert load_spec("specs/tiny.yaml", ["cascade=[]", taken % ""]).teacher.epochs == 0
    with pytest.raises(SpecError, match="a teacher of 0 epochs needs weights"):
        load_spec("specs/tiny.yaml", ["cascade=[]", taken % ", pretrained: false"])
    with pytest.raises(SpecError, match=r"shares need the teacher's size: set teacher\.params"):
        load_spec("specs/tiny.yaml", ["cascade=[0.5]", taken % ""])
    load_spec("specs/tiny.yaml", ["cascade=[0.5]", taken % ", params: 20_000".replace("_", "")])


def test_what_cannot_be_opened_is_a_usage_error(project: Path) -> None:
    for path, words in [
        ("specs", "is a folder"),
        ("specs/none.yaml", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ]:
        with pytest.raises(UsageError, match=words):
            load_spec(path)


def test_a_spec_alone_is_an_experiment_of_one_cell(project: Path) -> None:
    spec = load_spec("specs/tiny.yaml")
    found = Experiment.of(spec)
    assert found.cells[0].spec is spec and not found.is_grid and found.name == "tiny"


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


@settings(max_examples=150)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
        max_leaves=12,
    )
)
def test_what_yaml_writes_is_read_back(value: object) -> None:
    text = pyyaml.safe_dump({"value": value}, default_flow_style=False)
    found = parse_yaml(text, "x.yaml").plain()["value"]
    expected = _tuples(pyyaml.safe_load(text)["value"])
    assert found == expected or _differs_only_by_schema(text)


def test_a_family_that_leaves_a_fact_out_fails_at_import() -> None:
    facts = {name: vars(TsmArch)[name] for name in Architecture.__abstractmethods__}
    assert len(facts) == 5 and type("Whole", (Architecture,), {**facts})  # pydantic writes into what it is given
    for name in facts:
        rest = {other: fact for other, fact in facts.items() if other != name}
        with pytest.raises(TypeError, match=f"^Partial must define {name}; see Architecture"):
            type("Partial", (Architecture,), rest)
    with pytest.raises(TypeError, match="must define block_names, natural_cut, "):
        type("Empty", (Architecture,), {})


@pytest.mark.filterwarnings("ignore:Field name")
def test_no_field_bears_the_name_of_a_fact() -> None:
    for base in (Architecture, Resnet3dArch):
        with pytest.raises(TypeError, match=r"^Titled must rename these fields: title"):
            type("Titled", (base,), {"__annotations__": {"title": str}})


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _differs_only_by_schema(text: str) -> bool:
    """YAML 1.1 writes some plain scalars (base 60, dates, `=`) that the 1.2 core schema reads as strings."""
    import re

    return bool(re.search(r"\d:\d|^\s*-?\s*\S*:? ?[-+]?\d[\d_]*_|\d{4}-\d|=|<<|0b|0[0-7]+$", text, re.MULTILINE))
