"""extends, recipe, $delete, $replace: what is laid over what, what is refused, and the laws of merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd import load_spec
from stagedkd.errors import Place, Problem, SpecError, UsageError
from stagedkd.spec.explain import explain
from stagedkd.spec.inherit import METHOD, in_project, read_recipe, shipped_recipes, specs_root, with_recipe
from stagedkd.spec.load import load_experiment, load_one
from stagedkd.spec.merge import Merger
from stagedkd.spec.schema import Csv, Folder
from stagedkd.spec.yaml import Node, parse_yaml
from tests.broken import FILES, INHERITED
from tests.conftest import REPO, TINY


def child(project: Path, text: str, name: str = "child") -> str:
    (project / "specs" / f"{name}.yaml").write_text(text, "utf-8")
    return f"specs/{name}.yaml"


@pytest.mark.parametrize(("text", "at", "message", "hint", "related"), INHERITED)
def test_a_broken_child_or_grid_is_refused_at_its_place(
    project: Path, text: str, at: str, message: str, hint: str, related: tuple[str, ...]
) -> None:
    for name, content in FILES.items():
        child(project, content, name.removesuffix(".yaml"))
    path = child(project, text)
    with pytest.raises(SpecError) as caught:
        load_experiment(path)
    problem = caught.value.problems[0]
    beside = tuple(f"{what} {where}".replace("specs/", "") for what, where in problem.related)
    found = (str(problem.place).removeprefix("specs/"), problem.message, problem.hint.replace("specs", "."), beside)
    assert found == (at, message, hint.replace("specs", "."), related), caught.value.render()


def test_a_child_says_only_what_it_changes(project: Path) -> None:
    path = child(project, "extends: tiny.yaml\ntrain: {lr: 2e-2}\nstudent: {width: 8}\nname: mine\n")
    spec, parent = load_spec(path), load_spec("specs/tiny.yaml")
    assert spec.train == parent.train.model_copy(update={"lr": 2e-2}) and spec.student.model_dump()["width"] == 8
    assert spec.name == "mine" and spec.distill == parent.distill
    grandchild = load_spec(child(project, "extends: child.yaml\nlabels: {$replace: {clean: 0.5}}\n", "grandchild"))
    assert grandchild.train.lr == 2e-2 and grandchild.labels.noisy == 0 and grandchild.name == "grandchild"


def test_a_new_phase_goes_last_and_null_is_a_value(project: Path) -> None:
    more = "distill: {phases: {tail: {epochs: 1, losses: {ce: 1}}, grow: {epochs: 2, losses: {hint: null}}}}\ncontrol: null\n"
    spec = load_spec(child(project, f"extends: tiny.yaml\n{more}"))
    assert list(spec.distill.phases) == ["grow", "joint", "tail"] and spec.control is None
    assert spec.distill.phases["grow"].epochs == 2 and list(spec.distill.phases["grow"].losses.named()) == [
        "gaussian_w2"
    ]


def test_a_changed_arch_drops_what_only_the_old_one_has_with_a_note(project: Path) -> None:
    found = load_one(child(project, "extends: tiny.yaml\nteacher: {arch: r3d_18, labels: same}\n"))
    teacher = found.cells[0].spec.teacher
    assert teacher.arch == "r3d_18" and teacher.epochs == 3
    notes = [note for note in found.notes if note.severity == "note"]
    assert [(n.message, str(n.place), n.hint) for n in notes] == [
        ("dropped 'teacher.width': arch is now r3d_18", "specs/tiny.yaml:6:27", "only resnet3d has it"),
        ("dropped 'teacher.blocks': arch is now r3d_18", "specs/tiny.yaml:6:37", "only resnet3d has it"),
    ]
    assert (
        "note: dropped 'teacher.width'" in notes[0].render()
        and "arch changes at specs/child.yaml:2:17" in notes[0].render()
    )


def test_a_field_that_only_shares_its_name_is_dropped_when_the_kind_changes(project: Path) -> None:
    """`classes` and `val` are numbers of simulated clips, but an order and a table of real ones."""
    experiment = load_one(child(project, "extends: tiny.yaml\ndata: {kind: csv, path: clips.csv}\n"))
    told = {note.message: note.hint for note in experiment.notes}
    for name in ("classes", "val", "test"):
        assert told[f"dropped 'data.{name}': kind is now csv"] == f"csv means something else by '{name}'"
    assert told["dropped 'data.train': kind is now csv"] == "only shapes has it"
    data = experiment.cells[0].spec.data
    assert isinstance(data, Csv) and (data.classes, data.val, data.test) == (None, None, None)
    below = "extends: child.yaml\ndata: {kind: folder, classes: [b, a]}\n"
    data = load_spec(child(project, below, "grandchild")).data
    assert isinstance(data, Folder) and (data.path, data.classes) == ("clips.csv", ("b", "a"))


def test_a_bare_weight_and_a_map_of_the_same_loss_are_one_thing(project: Path) -> None:
    text = (
        TINY.replace("kd: 0.9", "kd: {weight: 0.9, temperature: 2}")
        .replace("sp: 10", "sp: 10, ce: 0.1")
        .replace("ce: 0.1, kd", "kd")
    )
    (project / "specs" / "tiny.yaml").write_text(text, "utf-8")
    losses = (
        load_spec(
            child(
                project, "extends: tiny.yaml\ndistill: {phases: {joint: {losses: {kd: 0.5, ce: {smoothing: 0.1}}}}}\n"
            )
        )
        .distill.phases["joint"]
        .losses
    )
    assert losses.kd and (losses.kd.weight, losses.kd.temperature) == (0.5, 2)
    assert losses.ce and (losses.ce.weight, losses.ce.smoothing) == (0.1, 0.1)


def test_several_parents_are_a_left_fold_and_a_shared_one_is_said(project: Path) -> None:
    child(project, "extends: tiny.yaml\ntrain: {lr: 2e-2, batch: 8}\n", "a")
    child(project, "extends: tiny.yaml\ntrain: {lr: 3e-2}\n", "b")
    found = load_one(child(project, "extends: [a.yaml, b.yaml]\n"))
    assert (found.cells[0].spec.train.lr, found.cells[0].spec.train.batch) == (3e-2, 16)
    assert [note.message for note in found.notes] == [
        "specs/tiny.yaml is merged a second time and overrides the files in between"
    ]
    child(project, "train: {lr: 4e-2}\nlabels: {noise: {$replace: {kind: symmetric, rate: 0.25}}}\n", "overlay")
    spec = load_spec(child(project, "extends: [a.yaml, overlay.yaml]\n"))
    assert (spec.train.lr, spec.train.batch) == (4e-2, 8) and spec.labels.noise and spec.labels.noise.rate == 0.25


def test_parents_have_a_limit(project: Path) -> None:
    child(project, "seed: 1\n", "p0")
    for i in range(1, 40):
        child(project, f"extends: [p{i - 1}.yaml, p{i - 1}.yaml]\n", f"p{i}")
    with pytest.raises(SpecError) as caught:
        load_spec("specs/p39.yaml")
    assert [p.message for p in caught.value.problems] == ["more than 100 parents in total"]


def test_a_recipe_replaces_the_method_whole(project: Path) -> None:
    path = child(project, "extends: tiny.yaml\nrecipe: kd\nstudent: {epochs: 4}\n")
    spec = load_spec(path)
    assert list(spec.distill.phases) == ["train"] and spec.cascade == () and spec.control == "ce"
    assert load_spec(path, ["recipe=staged_clean"]).cascade == "auto"
    assert load_spec(path, ["recipe=null"]) == spec.model_copy(update={"name": "child+recipe=null"})
    own = load_spec(
        child(project, "extends: child.yaml\ncascade: [0.5]\ndistill: {phases: {train: {losses: {sp: 3}}}}\n", "own")
    )
    assert own.cascade == (0.5,) and set(own.distill.phases["train"].losses.named()) == {"ce", "kd", "sp"}
    again = load_spec(child(project, "extends: own.yaml\nrecipe: hint\n", "again"))
    assert list(again.distill.phases) == ["hint", "train"] and again.cascade == ()
    (project / "specs" / "mine.yaml").write_text(FILES["mine.yaml"], "utf-8")
    mine = load_spec(child(project, "extends: tiny.yaml\nrecipe: mine.yaml\n", "with_mine"))
    assert list(mine.distill.phases) == ["only"]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_fits_the_quickstart_and_says_where_it_comes_from(name: str) -> None:
    text = shipped_recipes()[name].read_text("utf-8")
    assert len(text.splitlines()) < 15 and text.startswith("# ")
    spec = load_spec(REPO / "specs" / "quickstart.yaml", [f"recipe={name}", "teacher.labels=same"])
    assert spec.distill.phases and (spec.refine is None or name == "staged")
    assert {"ce", "kd", "hint", "staged"} <= shipped_recipes().keys()


def test_set_is_typed_placed_and_refused_like_the_file(project: Path) -> None:
    spec = load_spec(
        "specs/tiny.yaml", ["train.lr=3e-3", "student.width=8", "distill.phases.joint.losses.kd=0.5", "cascade=[0.6]"]
    )
    assert spec.train.lr == 3e-3 and spec.student.model_dump()["width"] == 8 and spec.cascade == (0.6,)
    kd = spec.distill.phases["joint"].losses.kd
    assert kd is not None and kd.weight == 0.5
    assert (
        spec.name
        == "tiny+train.lr=3e-3+student.width=8+distill.phases.joint.losses.kd=0.5+cascade=_0.6_-" + spec.name[-8:]
    )
    assert load_spec("specs/tiny.yaml", ["seed=1"]).name == "tiny+seed=1"
    assert load_spec("specs/tiny.yaml", ["seed=1", "name=mine"]).name == "mine"
    assert len(load_spec("specs/tiny.yaml", [f"name={'x' * 90}", *["train.lr=0.001"] * 9]).name) == 90
    assert len(load_spec("specs/tiny.yaml", ["train.weight_decay=0.0125"] * 9).name) == 120
    for wrong, place, message, hint in [
        ("train.lrr=1", "--set:1:1", "unknown key 'train.lrr'", "did you mean 'lr'?"),
        ("trian.lr=1", "--set:1:1", "unknown key 'trian'", "did you mean 'train'?"),
        ("teacher.conf=full", "--set:1:1", "unknown key 'teacher.conf'", "did you mean 'conv'?"),
        ("train.lr.x=1", "--set:1:1", "'train.lr' must be a number, not a map", "allowed: above 0, below 100"),
        ("train.lr=fast", "--set:1:1", "'train.lr' must be a number, not 'fast'", "allowed: above 0, below 100"),
        ("name=a b", "--set:1:1", "'name' cannot be 'a b'", "use letters, digits and _ . = , + -"),
    ]:
        with pytest.raises(SpecError) as caught:
            load_spec("specs/tiny.yaml", [wrong])
        problem = caught.value.problems[0]
        assert (str(problem.place), problem.message, problem.hint) == (place, message, hint)
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", ["train.lr=0"])
    assert "overrides 0.01 at specs/tiny.yaml:5:24" in caught.value.render()
    for text, words in [
        ("train.lr", r"a\.b=c"),
        ("=3", r"a\.b=c"),
        ("a..b=1", r"a\.b=c"),
        ("cascade.0=1", "one item of the list 'cascade'"),
        ("extends=x.yaml", "cannot be set from the command line"),
        ("grid={seeds: 2}", "cannot be set from the command line"),
        ("train={", "not YAML"),
    ]:
        with pytest.raises(UsageError, match=words):
            load_spec("specs/tiny.yaml", [text])
    text = TINY.replace("substages: [[stem, layer1], [layer2]]", "substages: 2")
    (project / "specs" / "number.yaml").write_text(text, "utf-8")
    with pytest.raises(UsageError, match=r"one item of the list 'student\.substages'"):  # a number stands for a list
        load_spec("specs/number.yaml", ["student.substages.0=[stem]"])
    assert load_spec("specs/number.yaml", ["student.substages=[[stem, layer1, layer2]]"]).student.substages != 2


def test_what_is_wrong_in_a_parent_says_who_extends_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "specs" / "latin.yaml").write_bytes("a: \xe9".encode("latin-1"))
    with pytest.raises(SpecError) as caught:
        load_spec(child(project, "extends: [latin.yaml, latin.yaml]\n"))
    assert (
        caught.value.render().count("the file is not UTF-8") == 2
        and "extended at specs/child.yaml:1:11" in caught.value.render()
    )
    (project / "specs" / "secret.yaml").write_text(TINY, "utf-8")
    plain = Path.open

    def refuse(path: Path, *args: Any, **named: Any) -> Any:
        if path.name == "secret.yaml":
            raise PermissionError(13, "Permission denied")
        return plain(path, *args, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SpecError, match=r"specs/secret\.yaml cannot be read: Permission denied") as caught:
        load_spec(child(project, "extends: secret.yaml\n"))
    assert str(caught.value.problems[0].place) == "specs/child.yaml:1:10"
    (project / "specs" / "long.yaml").write_text(f"extends: {'x' * 300}.yaml\n", "utf-8")
    with pytest.raises(SpecError, match="no file x"):
        load_spec("specs/long.yaml")
    (project / "specs" / "null.yaml").write_text('extends: "a\\0b.yaml"\nrecipe: "./a\\0b.yaml"\n', "utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec("specs/null.yaml")
    assert len(caught.value.problems) == 2


# ---------------------------------------------------------------- laws

SECTIONS = ["clip", "augment", "train", "labels"]
FORM = {"a": "scalar", "b": "scalar", "m": "map", "n": "map", "l": "list"}  # one form for each key: no kind changes


def _tree(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    leaf = st.integers(-3, 3) | st.booleans() | st.text("xy", max_size=2)
    by_form = {"scalar": leaf, "list": st.lists(leaf, max_size=2).map(tuple)}
    if depth:
        by_form["map"] = _tree(depth - 1)
    keys = [key for key, form in FORM.items() if form in by_form]
    return st.fixed_dictionaries({}, optional={key: by_form[FORM[key]] for key in keys})


overlays = st.dictionaries(st.sampled_from(SECTIONS), _tree(3), max_size=4)


def node(value: Any, name: str) -> Node:
    place = Place(name, 1, 1, 1, name)
    if isinstance(value, dict):
        return Node({key: node(item, name) for key, item in value.items()}, place, place)
    return Node(tuple(node(item, name) for item in value) if isinstance(value, tuple) else value, place, place)


def merged(*values: Any) -> Any:
    merger = Merger()
    tree = node(values[0], "0") if isinstance(values[0], dict) else values[0]
    for i, value in enumerate(values[1:], 1):
        tree = merger.merge(tree, node(value, str(i)) if isinstance(value, dict) else value)
    assert not merger.problems
    return tree


def plain_merge(below: Any, above: Any) -> Any:
    """The rule in three lines, as an independent check."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: plain_merge(below[key], value) if key in below else value for key, value in above.items()}


@settings(max_examples=200)
@given(overlays, overlays, overlays)
def test_merging_is_associative_has_an_identity_and_the_child_wins(a: Any, b: Any, c: Any) -> None:
    assert merged(merged(a, b), c).plain() == merged(a, merged(b, c)).plain() == merged(a, b, c).plain()
    assert merged(a, {}).plain() == merged({}, a).plain() == node(a, "0").plain()
    assert merged(a, b).plain() == plain_merge(node(a, "0").plain(), node(b, "0").plain())
    assert merged(a, a).plain() == node(a, "0").plain()


@settings(max_examples=100)
@given(overlays, overlays)
def test_every_leaf_keeps_the_place_of_the_file_that_said_it_last(a: Any, b: Any) -> None:
    def leaves(tree: Node, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Node]:
        if not isinstance(tree.value, dict):
            return {path: tree}
        return {p: n for key, below in tree.value.items() for p, n in leaves(below, (*path, key)).items()}

    first, second = leaves(node(a, "0")), leaves(node(b, "1"))
    for path, leaf in leaves(merged(a, b)).items():
        assert leaf.place.file == ("1" if path in second else "0")
        if path in second and path in first:
            assert leaf.over is not None and leaf.over.place.file == "0" and leaf.over.plain() == first[path].plain()


@settings(max_examples=100)
@given(overlays, overlays, st.sampled_from(SECTIONS), st.sampled_from(sorted(FORM)))
def test_delete_and_replace_are_what_they_say(a: Any, b: Any, section: str, key: str) -> None:
    replaced = merged(a, {section: {"$replace": b}})
    assert replaced.plain() == node(a | {section: b}, "0").plain()
    merger = Merger()
    found = merger.merge(node(a, "0"), node({section: {key: {"$delete": True}}}, "1")).plain()
    if key in a.get(section, {}):
        assert not merger.problems and key not in found[section]
        assert merged(found_node(found), {section: {key: a[section][key]}}).plain() == node(a, "0").plain()
    else:
        assert [p.message for p in merger.problems] == [f"there is no '{section}.{key}' to delete"]


def found_node(value: Any) -> Node:
    return node(value, "0")


@settings(max_examples=50)
@given(
    st.dictionaries(st.sampled_from(["distill", "cascade", "refine", "train", "clip"]), _tree(2), max_size=5),
    st.sampled_from(sorted(shipped_recipes())),
)
def test_a_recipe_leaves_nothing_of_its_parents_method(parent: Any, name: str) -> None:
    recipe = read_recipe(node(name, "1"), REPO, REPO)
    assert recipe is not None
    tree = with_recipe(node(parent, "0"), recipe, Merger()).plain()
    assert {key: tree[key] for key in METHOD & tree.keys()} == recipe.plain()
    assert {key: tree[key] for key in tree.keys() - METHOD} == {
        k: v for k, v in node(parent, "0").plain().items() if k not in METHOD
    }


def test_several_parents_are_a_left_fold_by_the_files(project: Path) -> None:
    texts = {
        "a": "train: {lr: 1e-3, batch: 8}\n",
        "b": "train: {lr: 2e-3}\nseed: 3\n",
        "c": "train: {batch: 4}\nseed: null\n",
    }
    for name, text in texts.items():
        child(project, text, name)
    found = load_one(child(project, "extends: [tiny.yaml, a.yaml, b.yaml]\n")).trees[""].plain()
    parts = [parse_yaml(TINY, "t"), *(parse_yaml(texts[name], name) for name in "ab")]
    assert found == merged(*parts).plain()
    nested = child(project, "extends: [tiny.yaml, a.yaml]\n", "ta")
    assert load_one(child(project, f"extends: [{Path(nested).name}, b.yaml]\n")).trees[""].plain() == found


def test_explain_names_a_real_source_for_every_leaf(project: Path) -> None:
    text = "extends: tiny.yaml\nrecipe: staged_clean\nteacher: {arch: r3d_18, epochs: 9}\nstudent: {epochs: 9, train: {lr: 2e-2}}\ngrid: {seeds: 2}\n"
    found = load_one(child(project, text), ["train.batch=4"], ["seed=1"])
    rows = explain(found.cells[0], found.trees["seed=1"])
    assert len(rows) > 50 and len({row.name for row in rows}) == len(rows)
    default = type(found.cells[0].spec)
    for row in rows:
        if row.place is None:
            assert row.source in ("default", "the file's name")
            continue
        if row.place.file == "--set":
            assert row.name == "train.batch" and row.over[0][1].file == "specs/tiny.yaml"
            continue
        lines = Path(row.place.file).read_text("utf-8").splitlines()
        assert lines[row.place.line - 1] == row.place.text
        if row.name in ("distill.phases.features.epochs", "distill.phases.joint.epochs"):
            assert (
                row.value == (5 if "features" in row.name else 4)
                and row.source == {r.name: r.source for r in rows}["student.epochs"]
            )
            continue
        if row.name == "seed":
            assert row.place.text == "grid: {seeds: 2}"
            continue
        shown = row.place.text[row.place.column - 1 :]
        assert shown.startswith(("[", "{", '"', str(row.value))) or float(shown[: row.place.width]) == row.value
    sources = {row.name: row.source for row in rows}
    assert sources["teacher.epochs"].startswith("specs/child.yaml:3") and sources["train.lr"].startswith(
        "specs/tiny.yaml:5"
    )
    assert "recipes/staged_clean.yaml:3" in sources["cascade"] and sources["seed"].startswith("specs/child.yaml:5")
    assert default.__name__ == "Spec"


def test_problems_are_shown_as_editors_want_them(project: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(child(project, "extends: tiny.yaml\ntrain: {lr: fast}\n"))
    assert caught.value.problems[0].as_json() == {
        "severity": "error",
        "message": "'train.lr' must be a number, not 'fast'",
        "hint": "allowed: above 0, below 100",
        "file": "specs/child.yaml",
        "line": 2,
        "column": 13,
        "end_column": 17,
        "related": [
            {"message": "overrides 0.01 at", "file": "specs/tiny.yaml", "line": 5, "column": 24, "end_column": 28}
        ],
    }
    assert Problem("no place").as_json() == {"severity": "error", "message": "no place", "hint": "", "related": []}


def test_a_project_is_told_by_its_marks(project: Path, tmp_path: Path) -> None:
    assert in_project(project / "specs" / "tiny.yaml")
    alone = tmp_path / "alone"
    assert in_project(alone / "x.yaml") is any(in_project(p / "x") for p in (tmp_path, *tmp_path.parents))
    (alone / ".git").mkdir(parents=True)
    assert in_project(alone / "specs" / "x.yaml") and specs_root(alone / "specs" / "x.yaml") == alone.resolve()
