"""`stagedkd tune`: the section, the trials, the tuned file, and how specs take it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stagedkd.cli import app
from stagedkd.errors import SpecError
from stagedkd.plan.compile import compile_experiment, compile_plan
from stagedkd.spec.cascade import assistants as assistants_of
from stagedkd.spec.load import load_experiment
from stagedkd.spec.tune import choose, edge_of
from stagedkd.spec.tuning import load_tuning
from tests.conftest import Command

SPEC = """\
data: {kind: shapes, classes: 4, train: 32, val: 16, test: 16}
clip: {frames: 4, size: 16}
train: {batch: 16, warmup_epochs: 0}
teacher: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1], epochs: 1}
distill: {phases: {train: {losses: {ce: 1.0, kd: 1.0}}}}
evaluate: {split: test}
"""
TUNE = "tune: {values: {student.train.lr: [1e-3, 1e-2]}, seeds: [100, 101, 102]}\n"
GRID = "grid: {seeds: 2, axes: {$method: {kd: {recipe: kd}, ce: {recipe: ce}}}}\n"


def write(text: str, name: str = "x.yaml") -> Path:
    path = Path(name)
    path.write_text(text, "utf-8")
    return path


def problem_of(text: str) -> tuple[str, str, str]:
    with pytest.raises(SpecError) as caught:
        load_experiment(write(text))
    problem = caught.value.problems[0]
    return str(problem.place), problem.message, problem.hint


SEEDS_HINT = "choose tuning seeds that the results never use"
EXAMPLE = "for example tune: {values: {student.train.lr: [1e-2, 3e-2]}, seeds: [100, 101, 102]}"
REFUSED = [
    ("seeds: [0, 101, 102]", "x.yaml:8:58", "seed 0 is both a tuning seed and a seed of the results", SEEDS_HINT),
    (
        "seeds: [100, 101]",
        "x.yaml:8:57",
        "'tune.seeds' needs 3 or more different seeds, and has 2",
        "one lucky seed would decide",
    ),
    ("seeds: 3", "x.yaml:8:57", "'tune.seeds' must be a list of seeds", "for example seeds: [100, 101, 102]"),
    ("seeds: [1, a, 2]", "x.yaml:8:57", "'tune.seeds' must be a list of seeds", "for example seeds: [100, 101, 102]"),
    ("sedes: [1, 2, 3]", "x.yaml:8:50", "unknown key 'tune.sedes'", "did you mean 'seeds'?"),
    (
        "seeds: [100, 101, 102], rule: best",
        "x.yaml:8:80",
        "'tune.rule' must be worst_seed or mean",
        "use one of worst_seed, mean",
    ),
]


@pytest.mark.parametrize(("new", "place", "message", "hint"), REFUSED)
def test_a_wrong_section_is_refused_at_its_place(project: Path, new: str, place: str, message: str, hint: str) -> None:
    assert problem_of(SPEC + TUNE.replace("seeds: [100, 101, 102]", new)) == (place, message, hint)


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ("{student.train.lrr: [1, 2]}", "'student.train.lrr' is not a path of the spec", "did you mean 'lr'?"),
        ("{seed: [1, 2]}", "'seed' cannot be tuned", "tune fields such as student.train.lr"),
        ("{evaluate.batch: [1, 2]}", "'evaluate.batch' cannot be tuned", "tune fields such as student.train.lr"),
        ("{cascade.0.train.lr: [1]}", "'cascade.0.train.lr' is not a path of the spec", None),
        ("{cascade.1.train.lr: [1]}", "no setting that is tuned has the assistant of 'cascade.1.train.lr'", None),
        ("{train.lr: 1}", "axis 'train.lr' must be a list or a map of labelled values", "for example train.lr: [...]"),
    ],
)
def test_a_value_that_cannot_be_tuned_is_refused(project: Path, values: str, message: str, hint: str | None) -> None:
    place, found, told = problem_of(SPEC + TUNE.replace("{student.train.lr: [1e-3, 1e-2]}", values))
    assert place.startswith("x.yaml:8:") and found == message and (hint is None or told == hint)


def test_a_value_out_of_range_is_refused_before_anything_is_trained(project: Path, stagedkd: Command) -> None:
    path = write(SPEC + TUNE.replace("1e-2]", "-1.0]"))
    with pytest.raises(SpecError, match="must be above 0"):
        load_tuning(path).trials("student", {})
    found = stagedkd("tune", "x.yaml", "--dry-run")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "error: 'student.train.lr' must be above 0, not -1.0\n --> x.yaml:8:42" in found.stderr


def test_results_of_a_grid_may_not_use_tuning_seeds(project: Path) -> None:
    _, message, _ = problem_of(SPEC + TUNE + GRID.replace("seeds: 2", "seeds: [7, 101]"))
    assert message == "seed 101 is both a tuning seed and a seed of the results"


def test_what_an_axis_sets_cannot_be_tuned(project: Path) -> None:
    grid = "grid: {axes: {student.train.lr: [1e-3, 1e-2]}}\n"
    assert problem_of(SPEC + TUNE + grid)[1] == "the grid's axis 'student.train.lr' sets 'student.train.lr'"


def test_the_rules_choose_what_they_say() -> None:
    steady, lucky, worse = [0.6, 0.6, 0.6], [0.9, 0.9, 0.5], [0.4, 0.4, 0.4]
    assert choose([worse, lucky, steady], "worst_seed") == 2 and choose([worse, lucky, steady], "mean") == 1
    assert choose([[0.5, 0.6], [0.5, 0.7]], "worst_seed") == 1  # a tie of the worst goes to the better mean
    assert choose([[0.4, 0.8], [0.6, 0.6]], "mean") == 1  # a tie of the means goes to the better worst
    assert choose([[0.5], [0.5]], "mean") == 0
    assert choose([[0.9, None, 0.9], [0.1, 0.1, 0.1]], "worst_seed") == 1  # a training that diverged counts as 0
    with pytest.raises(ValueError, match="every training diverged"):
        choose([[None, None]], "mean")


def test_trials_are_on_validation_and_on_tuning_seeds(project: Path) -> None:
    tuning = load_tuning(write(SPEC + TUNE + GRID))
    experiment, trials = tuning.trials("student", {})
    assert len(experiment.cells) == len(trials) == 2 * 2 * 3
    assert {cell.spec.evaluate.split for cell in experiment.cells} == {"val"}
    assert {cell.spec.seed for cell in experiment.cells} == {100, 101, 102}
    assert {cell.spec.student.train.lr for cell in experiment.cells} == {1e-3, 1e-2}


def test_networks_are_tuned_hop_by_hop(project: Path) -> None:
    cascade = "cascade: [{arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1, train: {batch: 8}}]\ncontrol: ce\n"
    values = "{student.train.lr: [1e-3, 1e-2], cascade.1.train.lr: [2e-3, 3e-3], control_train.lr: [4e-3],"
    tuning = load_tuning(
        write(SPEC + cascade + TUNE.replace("{student.train.lr: [1e-3, 1e-2]}", values + " teacher.train.lr: [5e-3]}"))
    )
    assert tuning.tune.networks == ("teacher", "assistant-1", "student", "control-ce")
    teachers, _ = tuning.trials("teacher", {})
    assert {cell.spec.teacher.seed for cell in teachers.cells} == {100, 101, 102}  # else one teacher is judged thrice
    assistants, _ = tuning.trials("assistant-1", {"": {"teacher.train.lr": "0.005"}})
    for cell in assistants.cells:
        (item,) = assistants_of(cell.spec)
        assert item.train.lr in (2e-3, 3e-3) and item.train.batch == 8
        assert cell.spec.student.train.lr is None and cell.spec.teacher.train.lr == 5e-3
    students, _ = tuning.trials("student", {"": {"cascade.1.train.lr": "0.003"}})
    assert {assistants_of(cell.spec)[0].train.lr for cell in students.cells} == {3e-3}


def test_an_edge_is_named_only_where_something_may_lie_beyond(project: Path) -> None:
    values = "{student.substages: [1, 2], student.train.weight_decay: [0, 0.1], cascade.1.train.lr: [2e-3, 3e-3]}"
    deeper = SPEC.replace("blocks: [1], epochs", "blocks: [1, 1], epochs")
    cascade = "cascade: [{arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}]\n"
    tuning = load_tuning(write(deeper + cascade + TUNE.replace("{student.train.lr: [1e-3, 1e-2]}", values)))
    edges = {axis.name: [edge_of(axis, label) for label in axis.values] for axis in tuning.tune.fields}
    assert edges == {
        "student.substages": ["", "highest"],
        "student.train.weight_decay": ["", "highest"],
        "cascade.1.train.lr": ["lowest", "highest"],
    }


CUTS = "grid: {axes: {$method: {kd: {recipe: kd}, ce: {recipe: ce}}, student.train.batch: [8, 16]}}\n"


def at(labels: str, grid: str = CUTS) -> str:
    return SPEC + grid + TUNE.replace("102]", f"102], at: {labels}")


def test_one_setting_is_tuned_for_all_that_differ_in_some_labels_alone(project: Path) -> None:
    tuning = load_tuning(write(at("16")))
    _, trials = tuning.trials("student", {})
    assert {trial.setting for trial in trials.values()} == set(tuning.settings)
    assert list(tuning.settings) == ["method=kd,student.train.batch=16", "method=ce,student.train.batch=16"]
    tuned_by_hand("", rows="{'method=kd,student.train.batch=16': %s, 'method=ce,student.train.batch=16': %s}")
    experiment = load_experiment(write(at("16") + "tuned: x.tuned.yaml\n"))
    rates = {cell.name: cell.spec.student.train.lr for cell in experiment.cells}
    assert list(rates.values()) == [1e-2, 1e-2, 1e-3, 1e-3]  # kd at both batches, then ce
    notes = {name: plan.notes for name, plan in compile_experiment(experiment).cells.items()}
    note = "student.train.lr: as tuned for method=kd,student.train.batch=16 (tune.at)"
    assert note in notes["method=kd,student.train.batch=8"]
    assert not any("(tune.at)" in note for note in notes["method=kd,student.train.batch=16"])  # it has its own choice
    by_hand = compile_experiment(load_experiment("x.yaml", ["student.train.lr=0.5"]))
    assert not any("(tune.at)" in note for plan in by_hand.cells.values() for note in plan.notes)
    more = (at("16") + "tuned: x.tuned.yaml\n").replace("[8, 16]", "[8, 12, 16]")  # not stale: nothing else was tuned
    assert len(load_experiment(write(more)).cells) == 6
    child = "extends: x.yaml\ntuned: x.tuned.yaml\ngrid: {axes: {$method: {ce: {recipe: ce}, kd: {recipe: kd}}}}\n"
    cells = load_experiment(write(child, "y.yaml")).cells  # an axis that a child lacks has the label of tune.at
    assert {cell.name: cell.spec.student.train.lr for cell in cells} == {"method=ce": 1e-3, "method=kd": 1e-2}
    assert problem_of(more.replace("at: 16", "at: 12"))[1].startswith("x.tuned.yaml is stale")
    assert len(load_experiment(write(more.replace("at: 16", "at: '16.0'"))).cells) == 6  # the same setting
    turned = CUTS.replace("{axes: {", "{axes: {student.train.batch: [8, 16], ").replace(
        ", student.train.batch: [8, 16]}}", "}}"
    )
    write(at("16") + "tuned: x.tuned.yaml\n")
    tuned = load_experiment(write("extends: x.yaml\ntuned: x.tuned.yaml\n" + turned, "y.yaml")).tuned
    assert [name for name, setting in tuned.items() if not setting.taken] == [
        "student.train.batch=16,method=kd",
        "student.train.batch=16,method=ce",
    ]


@pytest.mark.parametrize(
    ("labels", "grid", "message", "hint"),
    [
        ("99", CUTS, "tune.at: there is no setting '99'", None),
        ("[8]", CUTS, "tune.at: it must be a label, or axis=label,...", "for example at: distill.pairing=auto"),
        ("bacth=8", CUTS, "tune.at: the grid has no axis 'bacth'", None),
        ("'8,'", CUTS, "tune.at: it must be a label, or axis=label,...", None),
        ("8", "", "'tune.at' needs a grid with two settings or more", "remove it"),
        (
            "8",
            CUTS.replace("}}\n", "}, exclude: [{method: ce, student.train.batch: 8}]}\n"),
            "tune.at: the grid has no setting 'method=ce,student.train.batch=8', whose choice another one would take",
            "include it, or name other labels",
        ),
    ],
)
def test_wrong_labels_of_what_is_tuned_are_refused(
    project: Path, labels: str, grid: str, message: str, hint: str | None
) -> None:
    place, found, told = problem_of(at(labels, grid))
    assert place.startswith(f"x.yaml:{9 if grid else 8}:") and found == message and (hint is None or told == hint)


@pytest.mark.parametrize(
    ("axis", "label", "values", "message"),
    [
        (
            "$c: {one: {cascade: [{arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}]}, none: {cascade: []}}",
            "one",
            "cascade.1.train.lr: [1e-3]",
            "'cascade.1.train.lr' is no assistant of this spec",
        ),
        (
            "$s: {two: {student: {blocks: [1, 1]}}, small: {}}",
            "two",
            "student.substages: [1, 2]",
            "a number cuts this network into at most 1 substages, not 2",
        ),
        ("$c: {ce: {control: ce}, none: {}}", "ce", "control_train.lr: [1e-3]", "control_train has no control"),
    ],
    ids=["assistant", "substages", "control"],
)
def test_a_setting_that_cannot_take_a_value_is_told_before_tuning(
    project: Path, axis: str, label: str, values: str, message: str
) -> None:
    text = at(label, f"grid: {{axes: {{{axis}}}}}\n").replace("student.train.lr: [1e-3, 1e-2]", values)
    with pytest.raises(SpecError) as caught:
        load_tuning(write(text))
    problem = caught.value.problems[0]
    assert message in problem.message and str(problem.place).startswith("x.yaml:")


def test_several_labels_need_quotes(project: Path) -> None:
    _, message, hint = problem_of(at("method=kd,student.train.batch=16"))
    assert message == "unknown key 'tune.student.train.batch=16'"
    assert hint == 'several labels need quotes: "axis=label,axis=label"'


@pytest.mark.slow
def test_an_assistant_by_share_is_tuned_as_a_map(project: Path) -> None:
    values = TUNE.replace("student.train.lr", "cascade.1.train.lr")
    bare = SPEC.replace("teacher: {arch: resnet3d, width: 4", "cascade: [0.5]\nteacher: {arch: resnet3d, width: 12")
    assert problem_of(bare + values)[1] == "'cascade.1.train.lr' cannot be tuned: the assistant is a bare share"
    tuning = load_tuning(write(bare.replace("[0.5]", "[{share: 0.5}]") + values))
    experiment, _ = tuning.trials("assistant-1", {})
    rates = {compile_plan(cell.spec).stage("assistant-1").work.phases[0].train.lr for cell in experiment.cells}
    assert rates == {1e-3, 1e-2}


def test_tune_writes_what_plan_takes(project: Path, stagedkd: Command) -> None:
    spec = write(SPEC + GRID + TUNE)
    first = stagedkd("tune", "x.yaml", "--dry-run")
    assert first.returncode == 0 and first.stdout.startswith("student: 12 cells, ")
    assert not Path("x.tuned.yaml").exists()
    done = stagedkd("tune", "x.yaml")
    assert done.returncode == 0, done.stderr
    written = Path("x.tuned.yaml").read_bytes()
    assert written.startswith(b"# Made by `stagedkd tune x.yaml`; do not edit.\n")
    values = yaml.safe_load(written)
    assert list(values["settings"]) == ["method=kd", "method=ce"] and values["seeds"] == [100, 101, 102]
    tried = values["settings"]["method=kd"]["tried"]
    assert [list(row["top1"]) for row in tried] == [[100, 101, 102]] * 2
    for row in tried:
        for folder in row["keys"].values():
            assert (Path("store") / folder).exists() or list(Path().rglob(folder))
    chosen = choose([list(row["top1"].values()) for row in tried], "worst_seed")
    lr = values["settings"]["method=kd"]["choice"]["student.train.lr"]
    assert lr == [1e-3, 1e-2][chosen]
    edge = ["lowest", "highest"][chosen]
    assert f"tune chose student.train.lr = {lr}, the {edge} that it tried, for method=kd" in done.stdout

    again = stagedkd("tune", "x.yaml")
    assert again.returncode == 0 and Path("x.tuned.yaml").read_bytes() == written
    assert "nothing" not in again.stdout and "running" not in again.stderr  # every trial is in the store

    spec.write_text(SPEC.replace("test}", "test}\ntuned: x.tuned.yaml", 1) + GRID + TUNE, "utf-8")
    experiment = load_experiment("x.yaml")
    rates = {c.labels["method"]: c.spec.student.train.lr for c in experiment.cells}
    assert rates == {
        name.partition("=")[2]: row["choice"]["student.train.lr"] for name, row in values["settings"].items()
    }
    assert {c.spec.evaluate.split for c in experiment.cells} == {"test"}
    assert Path("x.tuned.yaml").resolve() in experiment.files
    assert any("that it tried" in note for plan in compile_experiment(experiment).cells.values() for note in plan.notes)
    _check_stale(spec, written)


def _check_stale(spec: Path, written: bytes) -> None:
    """Changes of what was tuned make the file stale; more seeds of the results do not."""
    text = spec.read_text("utf-8")
    command = "run: stagedkd tune x.yaml"
    stale = ("x.yaml:8:8", "x.tuned.yaml is stale: x.yaml or its section tune has changed since it was made", command)
    assert problem_of(text.replace("epochs: 1}", "epochs: 2}", 1)) == stale
    assert problem_of(text.replace("102", "103")) == stale
    load_experiment(write(text.replace("seeds: 2", "seeds: 5").replace("split: test", "split: val")))
    child = "extends: x.yaml\ntuned: x.tuned.yaml\n"
    write(text)
    methods = "grid: {seeds: [100], axes: {$method: {kd: {recipe: kd}, dkd: {recipe: dkd}}}}\n"
    with pytest.raises(SpecError) as caught:
        load_experiment(write(child + methods, "y.yaml"))
    assert [p.message for p in caught.value.problems] == [
        "x.tuned.yaml has no setting 'method=dkd'",
        "seed 100 is both a tuning seed of x.tuned.yaml and a seed of the results",
    ]
    Path("x.tuned.yaml").unlink()
    assert problem_of(text) == ("x.yaml:8:8", "there is no file x.tuned.yaml", command)
    Path("x.tuned.yaml").write_bytes(b"a: 1\n")
    assert problem_of(text)[1] == "x.tuned.yaml is not a tuned file of this version"
    Path("x.tuned.yaml").write_bytes(written)
    load_experiment("x.yaml")


def tuned_by_hand(choice: str, edge: str = "{}", rows: str = "") -> None:
    """A tuned file of x.yaml that is not stale, with this choice; or with `rows`, whose choices are 1e-2 and 1e-3."""
    made_from = load_tuning(Path("x.yaml")).made_from
    head = f"form: 1\nspec: x.yaml\nmade_from: {made_from}\nseeds: [100, 101, 102]\n"
    one = f"{{all: {{choice: {choice}, edge: {edge}}}}}"
    two = rows and rows % tuple(f"{{choice: {{student.train.lr: {rate}}}}}" for rate in ("1e-2", "1e-3"))
    write(head + f"settings: {two or one}\n", "x.tuned.yaml")


def test_choices_are_merged_under_set_and_named_as_their_source(project: Path) -> None:
    write(SPEC + TUNE + "tuned: x.tuned.yaml\n")
    tuned_by_hand("{student.train.lr: 1e-2}", "{student.train.lr: highest, train.lr: lowest}")
    experiment = load_experiment("x.yaml")
    assert experiment.cells[0].spec.student.train.lr == 1e-2
    node = experiment.trees[""].at(("student", "train", "lr"))
    assert node is not None and str(node.place) == "x.tuned.yaml:5:45"
    (plan,) = compile_experiment(experiment).cells.values()
    edge = "tune chose student.train.lr = 0.01, the highest that it tried, for all: a better one may lie beyond"
    assert [note for note in plan.notes if "tune" in note] == [edge]
    assert load_experiment("x.yaml", ["student.train.lr=0.5"]).cells[0].spec.student.train.lr == 0.5


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("{cascade.1.train.lr: 1e-2}", "'cascade.1.train.lr' is no assistant of this spec"),
        ("{cascade.x: 1e-2}", "'cascade.x' is no assistant of this spec"),
        ("{student.lr: 1e-2}", "unknown key 'student.lr'"),
    ],
)
def test_an_edited_choice_is_refused_at_its_place(project: Path, choice: str, message: str) -> None:
    write(SPEC + TUNE)
    tuned_by_hand(choice)
    place, found, _ = problem_of(SPEC + TUNE + "tuned: x.tuned.yaml\n")
    assert found == message and place.startswith("x.tuned.yaml:5:")


def test_a_spec_without_the_section_cannot_be_tuned(project: Path) -> None:
    from typer.testing import CliRunner

    write(SPEC)
    result = CliRunner().invoke(app, ["tune", "x.yaml"])
    assert isinstance(result.exception, SpecError)
    assert result.exception.problems[0].message == "the spec has no section tune"
