"""Make docs/python.md, the page of the Python API, from the docstrings of what it names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from textwrap import fill
from typing import Any

HEAD = """\
# The Python API

`make docs` makes this page from docstrings; do not edit it. These names are kept: other names may move.

```python
from stagedkd import compile_plan, load_spec, load_student, report, run

spec = load_spec("specs/quickstart.yaml", ["student.epochs=5"])  # SpecError lists every problem with its place
for stage in compile_plan(spec).stages:  # pure: no torch, no disk
    print(stage.name, stage.key)
outcome = run(spec)  # makes what the store lacks; a killed run resumes
results = report(outcome.plan)  # writes results/quickstart/
print(results.student.top1, results.teacher.top1)
student = load_student("results/quickstart")
print(student.predict("video.mp4").top(3))
```

`import stagedkd` loads no torch. Every error is a `StagedkdError` (`stagedkd.errors`) with `message` and `hint`;
[errors.md](errors.md) lists them. Shapes are named by suffixes: V views, T frames, H and W pixels, N classes.
"""

SECTION = re.compile(r"^(Args|Raises|Attributes|Returns):$")
ENTRY = re.compile(r"(?:^|(?<=[.;]) )((?:(?!None\b)\w+(?:, )?)+): ")


def reference() -> str:
    """Return docs/python.md as Markdown."""
    import stagedkd
    from stagedkd.deploy.student import Prediction, Student
    from stagedkd.errors import StagedkdError
    from stagedkd.experiment.run import Outcome
    from stagedkd.plan.graph import Plan, Stage
    from stagedkd.plan.runtime import Runtime, load_runtime
    from stagedkd.report.results import NetworkResult, Results
    from stagedkd.stages.context import Listener, Silent

    functions = [getattr(stagedkd, name) for name in ("load_spec", "compile_plan", "run", "report", "load_student")]
    lines = [HEAD, "## Functions of stagedkd\n", *(line for each in functions for line in _function(each))]
    lines += ["## A student\n", *_class(Student), *_class(Prediction)]
    lines += ["## What runs return\n", *(line for each in (Plan, Stage, Outcome, Results) for line in _class(each))]
    lines += [*_class(NetworkResult), "## Where and how it runs\n", *_class(Runtime), *_function(load_runtime)]
    lines += ["## Your own listener\n", *_class(Listener), f"### {Silent.__name__}\n", *_docstring(Silent)]
    return "\n".join([*lines, "## Errors\n", *_class(StagedkdError)])


def _function(function: Callable[..., Any], owner: str = "") -> Iterator[str]:
    """Yield the lines of a function or method: its name, signature and docstring."""
    name = f"{owner}.{function.__name__}" if owner else function.__name__
    yield f"{'####' if owner else '###'} {name}\n"
    yield f"```python\n{_signature(function, bool(owner))}\n```\n"
    yield from _docstring(function)


def _signature(function: Callable[..., Any], method: bool) -> str:
    """Return a call with types; with a parameter a line where it is long."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[method:]
    texts = [re.sub(r": (['\"])(.*?)\1(?= =|$)", r": \2", str(each)) for each in parameters]
    result = signature.return_annotation
    line = f"{function.__name__}({', '.join(texts)}) -> {result}"
    if len(line) <= 88:
        return line
    return f"{function.__name__}(\n    " + ",\n    ".join(texts) + f",\n) -> {result}"


def _class(kind: type) -> Iterator[str]:
    """Yield the lines of a class: its docstring, its fields and properties, and its public methods."""
    yield f"### {kind.__name__}\n"
    yield from _docstring(kind)
    names = [each.name for each in fields(kind)] if is_dataclass(kind) else []
    hints = {
        name: hint for base in reversed(kind.__mro__) for name, hint in vars(base).get("__annotations__", {}).items()
    }
    rows = [f"| `{name}` | `{hints[name]}` |".replace(" | None`", " \\| None`") for name in names if name[0] != "_"]
    if rows:
        yield "\n".join(("| field | type |", "|---|---|", *rows, ""))
    own = [(name, value) for name, value in vars(kind).items() if name[0] != "_"]
    for name, value in own:
        if isinstance(value, property):
            yield f"#### {kind.__name__}.{name}\n"
            yield from _docstring(value)
    for _, value in own:
        if inspect.isfunction(value):
            yield from _function(value, kind.__name__)


def _docstring(thing: Any) -> Iterator[str]:
    """Yield a docstring as Markdown: paragraphs, code, and the sections Args, Raises, Attributes as lists."""
    for block in re.split(r"\n(?=\w+:\n)|\n\n", inspect.getdoc(thing) or ""):
        first, _, rest = block.strip("\n").partition("\n")
        if SECTION.match(first):
            yield f"{first}\n"
            yield from (fill(f"- {entry}", 120, subsequent_indent="  ") for entry in _entries(rest))
            yield ""
        elif block.startswith("    "):
            yield f"```python\n{inspect.cleandoc(block)}\n```\n"
        elif block.strip():
            yield fill(" ".join(block.split()), 120) + "\n"


def _entries(text: str) -> Iterator[str]:
    """Yield the entries of a section, `name: words`, also where several stand on one line."""
    parts = ENTRY.split(" ".join(text.split()))
    for name, words in zip(parts[1::2], parts[2::2], strict=True):
        yield f"`{name.replace(', ', '`, `')}`: {words.strip()}"


if __name__ == "__main__":
    print(reference(), end="")
