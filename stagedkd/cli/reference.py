"""Make docs/commands.md, the page of the command line, from the commands: their docstrings, arguments and options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import fill
from typing import Any, Literal, get_args, get_origin

HEAD = """\
# The command line

`make docs` makes this page from the commands in `stagedkd/cli/`; do not edit it. `-h` after any command shows the same
in the terminal, and `python -m stagedkd` is the same command.

Every command that takes a spec, but `tune`, also takes `--set a.b=c` and, for grids, `--cell axis=label,...`
([language.md](language.md#--set)). Where the spec is, is the project: the nearest folder above it with
`params.yaml`, `stagedkd.lock`, `dvc.yaml` or `.git`. Its `params.yaml` sets folders, threads and the device; an option
beats that file.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the run failed, or data, the store or the machine did not allow it |
| 2 | the spec or the arguments are wrong; nothing was run |
| 70 | a fault of stagedkd itself: please report it |
| 129, 130, 143 | interrupted, with a checkpoint: the same command resumes |

`stagedkd --version` names the versions of stagedkd, Python and torch. `stagedkd --install-completion` lets your shell
complete commands and options, from its next start.

## All commands
"""


def reference() -> str:
    """Return docs/commands.md as Markdown."""
    commands = list(_commands())
    lines = [HEAD, "| command | what it does |", "|---|---|"]
    for names, command in commands:
        link = "-".join(("stagedkd", *names))
        lines.append(f"| [`{' '.join(names)}`](#{link}) | {_cell(_paragraphs(command)[0])} |")
    return "\n".join([*lines, "", *(line for names, command in commands for line in _section(names, command))])


def _commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the words and the command of each command, those of groups after the others."""
    from typer.main import get_command

    from stagedkd.cli import app

    group: Any = get_command(app)
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        if below is None:
            yield (name,), command
        else:
            yield from (((name, inner), each) for inner, each in below.items())


def _paragraphs(command: Any) -> list[str]:
    """Return the paragraphs of a command's docstring, each on one line."""
    return [" ".join(part.split()) for part in (command.help or "").split("\n\n") if part.strip()]


def _section(names: Sequence[str], command: Any) -> Iterator[str]:
    """Yield the lines of a command's section."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and "--help" not in each.opts]
    required = [f"{option.opts[0]} {_value(option)}" for option in options if option.required]
    words = ["stagedkd", *names, *map(_usage, arguments), *required, *(["[OPTIONS]"] if options else [])]
    yield f"## stagedkd {' '.join(names)}\n"
    yield f"```\n{' '.join(words)}\n```\n"
    for paragraph in _paragraphs(command):
        yield fill(_markdown(paragraph), 120) + "\n"
    for is_option, rows in groupby([*arguments, *options], lambda each: each in options):
        yield f"| {'option' if is_option else 'argument'} | meaning |\n|---|---|"
        yield from (_row(each) for each in rows)
        yield ""


def _usage(argument: Any) -> str:
    name = f"{argument.metavar or argument.name.upper()}{'...' if argument.nargs == -1 else ''}"
    return name if argument.required else f"[{name}]"


def _row(parameter: Any) -> str:
    """Return the row of an argument or option: how it is written, what it does, and its default if it has one."""
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        takes = "" if parameter.is_flag else f" {_value(parameter)}"
        flags = sorted(parameter.opts, key=len, reverse=True)
        name = ", ".join(f"`{flag}{takes if flag.startswith('--') else ''}`" for flag in flags)
    shown = _default(parameter)
    return f"| {_cell(name)} | {_cell(parameter.help)}{f' Default: {shown}.' if shown else ''} |"


def _cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|")


def _markdown(text: str) -> str:
    """Return a plain text as Markdown: `<name>` would be a tag of HTML."""
    return text.replace("<", "\\<")


def _value(option: Any) -> str:
    """Return what an option takes, in one word."""
    annotation = option.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return option.metavar or {int: "N", float: "X"}.get(annotation, "TEXT")


def _default(parameter: Any) -> str:
    """Return the default as the help shows it; "" if there is none."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    value = parameter.default
    return f"`{value}`" if isinstance(value, str | int | float) and value not in ("", False) else ""


if __name__ == "__main__":
    print(reference(), end="")
