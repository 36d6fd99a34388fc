"""The command line: parse, call one function, render, exit code.

0: done. 1: the run failed. 2: the spec or the arguments are wrong. 130, 143: interrupted, with a checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagedkd.errors import StagedkdError

if TYPE_CHECKING:
    from rich.console import Console

    from stagedkd.plan.graph import Plan
    from stagedkd.plan.runtime import Runtime
    from stagedkd.spec.schema import Spec
app = typer.Typer(
    name="stagedkd", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    help="Staged knowledge distillation for video classification, from one YAML spec.",
)  # fmt: skip

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML spec.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Set a value of the spec.")]
StoreDir = Annotated[Path | None, typer.Option("--store", metavar="DIR", help="Folder of artifacts.")]
ResultsDir = Annotated[Path | None, typer.Option("--results", metavar="DIR", help="Folder of reports.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Root of the data sets.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option("--threads", min=0, help="Threads of torch; 0: all cores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; tracebacks in full.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say errors and results only.")]


@app.command()
def check(
    spec: SpecPath, overrides: Overrides = None,
    shapes: Annotated[bool, typer.Option("--shapes", help="Build all networks on the meta device.")] = False,
) -> None:  # fmt: skip
    """Check a spec: every fault at once, each with its place."""
    loaded = _load(spec, overrides)
    plan = _plan(loaded, _runtime(spec))
    for note in plan.notes:
        _console().print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if shapes:
        _print_shapes(plan, _runtime(spec))
    _console().print(f"{spec}: {len(plan.stages)} stages, no fault found", highlight=False)


@app.command()
def plan(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False, store: StoreDir = None) -> None:
    """List the stages, their keys, and whether the store has them."""
    from stagedkd.report.terminal import plan_table
    from stagedkd.store.store import Store
    from stagedkd.store.why import why_miss

    runtime = _runtime(spec, store=store)
    made = _plan(_load(spec, overrides), runtime)
    kept = Store(runtime.folder("store"))
    states = {stage.name: kept.state(stage) for stage in made.stages}
    stored = list(kept.manifests()) if "miss" in states.values() else []
    why = {s.name: why_miss(made, s, stored) for s in made.stages if states[s.name] == "miss"}
    if as_json:
        stages = [
            {"stage": s.name, "kind": s.work.kind, "key": s.key, "state": states[s.name], "needs": dict(s.needs),
             "why": why.get(s.name, ""), "work": s.work.model_dump(mode="json")}
            for s in made.stages
        ]  # fmt: skip
        print(json.dumps({"name": made.name, "notes": made.notes, "stages": stages}, indent=1))
        return
    console = _console()
    console.print(plan_table(made, states, why))
    if "unlocked" in states.values():
        console.print(
            "note: keys wait for stagedkd.lock: stagedkd lock SPEC writes it where the data are", soft_wrap=True
        )
    for note in made.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def run(
    spec: SpecPath, overrides: Overrides = None, store: StoreDir = None, results: ResultsDir = None,
    data_dir: DataDir = None, device: Device = None, threads: Threads = None, verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Run every stage that the store does not have, then report."""
    from stagedkd.execute.walk import run as walk
    from stagedkd.report.collect import collect
    from stagedkd.report.terminal import Shown, results_table
    from stagedkd.report.write import report as write
    from stagedkd.report.write import results_folder
    from stagedkd.store.store import Store

    loaded = _load(spec, overrides)
    runtime = _runtime(spec, store=store, results=results, data_dir=data_dir, device=device, threads=threads)
    console = _console(err=True)
    with Shown(console, verbose - quiet) as shown:
        outcome = walk(loaded, runtime, shown)
    folder = results_folder(outcome.plan, runtime)
    if outcome.ran or not (folder / "report.html").exists():
        found = write(outcome.plan, runtime)
    else:
        console.print("nothing to do: every stage is in the store", highlight=False)
        found = collect(outcome.plan, Store(runtime.folder("store")))
    out = _console()
    out.print(results_table(found))
    for note in found.notes:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"top-1 on the {found.split} split; report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def show(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False, store: StoreDir = None) -> None:
    """Show the results of a spec that has run."""
    from stagedkd.report.collect import collect
    from stagedkd.report.terminal import results_table
    from stagedkd.report.write import as_json as to_json
    from stagedkd.store.store import Store

    runtime = _runtime(spec, store=store)
    found = collect(_plan(_load(spec, overrides), runtime), Store(runtime.folder("store")))
    if as_json:
        print(json.dumps(to_json(found), indent=1))
        return
    _console().print(results_table(found))


@app.command()
def report(spec: SpecPath, overrides: Overrides = None, store: StoreDir = None, results: ResultsDir = None) -> None:
    """Write results/<name>/metrics.json and report.html from the store."""
    from stagedkd.report.write import report as write
    from stagedkd.report.write import results_folder

    runtime = _runtime(spec, store=store, results=results)
    made = _plan(_load(spec, overrides), runtime)
    write(made, runtime)
    _console().print(f"wrote {results_folder(made, runtime) / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def lock(spec: SpecPath, overrides: Overrides = None, data_dir: DataDir = None) -> None:
    """Write stagedkd.lock: accept data and weights as they are on the disk."""
    from stagedkd.execute.locking import lock_spec

    _, lines = lock_spec(_load(spec, overrides), _runtime(spec, data_dir=data_dir), accept=True)
    for line in lines or ["stagedkd.lock is up to date"]:
        _console().print(line, markup=False, highlight=False, soft_wrap=True)


def _load(path: Path, overrides: list[str] | None) -> Spec:
    from stagedkd.spec.load import load_spec

    return load_spec(path, overrides or ())


def _runtime(spec: Path, **overrides: Any) -> Runtime:
    from stagedkd.plan.runtime import load_runtime
    from stagedkd.spec.load import specs_root

    return load_runtime(specs_root(spec), **overrides)


def _plan(spec: Spec, runtime: Runtime) -> Plan:
    from stagedkd.plan.compile import compile_plan
    from stagedkd.plan.lock import read_lock

    return compile_plan(spec, read_lock(runtime.lock_path))


def _print_shapes(plan: Plan, runtime: Runtime) -> None:
    from stagedkd.execute.preflight import preflight
    from stagedkd.report.terminal import shapes_tables

    found = preflight(plan, Path(runtime.root))
    networks = [(name, n.params, n.trunk_params, n.flops) for name, n in found.networks.items()]
    pairs = [(p.hop, p.number, p.student, p.teacher, p.grid) for p in found.pairs]
    for table in shapes_tables(networks, pairs):
        _console().print(table)


def _console(err: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=err)
    return console if console.is_terminal else Console(stderr=err, width=160)


def main() -> None:
    """Entry point: errors of ours are rendered, never traced, unless -v asks."""
    try:
        app(standalone_mode=False)
    except StagedkdError as error:
        print(error.render(), file=sys.stderr)
        if {"-v", "--verbose"} & set(sys.argv) and error.__cause__ is not None:
            raise
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        show_usage = getattr(error, "show", None)  # click's usage errors print themselves
        if show_usage is None:
            raise
        show_usage()
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
