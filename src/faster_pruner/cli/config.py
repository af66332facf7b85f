"""A run's options in a file: read with --config, and written beside every result.

The file is TOML; its keys are the options as they are typed, without dashes in front ("macs", "calibration-rows"), and
"model". What is typed as well counts more. Values go through the same checks, with the same messages.
"""

from __future__ import annotations

import difflib
import inspect
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from faster_pruner.cli.expanding import with_more
from faster_pruner.errors import OutputError
from faster_pruner.host.files import beside
from faster_pruner.host.launch import speaks

# How a file that a run wrote begins; only such a file is replaced.
HEADER = "# Written by faster-pruner: the options of a run. "
# Options that say how a command speaks, not what it does, and where it writes and reads this.
_NOT_KEPT = {"config", "json", "quiet", "debug", "overwrite", "resume", "help"}


def read(context: typer.Context, file: Path | None) -> Path | None:
    """Take the options of a file as defaults: the callback of --config.

    Raises:
        typer.BadParameter: the file cannot be read, or names what no option is.
    """
    if file is None:
        return None
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{str(file)!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise typer.BadParameter(f"{str(file)!r} is no TOML: {error}; a line looks like: macs = 0.5") from error
    names = _names(context)
    for key, value in found.items():
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            raise typer.BadParameter(
                f"{str(file)!r} sets {key!r}, which is no option of {context.command.name}"
                + (f"; do you mean {close[0]!r}?" if close else f"; options: {', '.join(sorted(names))}")
            )
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value)):
            raise typer.BadParameter(f"{str(file)!r}: {key!r} must be a text, a number, a list or true or false")
    context.default_map = {names[key]: value for key, value in found.items()} | dict(context.default_map or {})
    return file


# The option itself.
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Options from a TOML file (macs = 0.5); what is typed as well counts more.",
        is_eager=True,
        callback=read,
        show_default=False,
    ),
]


def _names(context: typer.Context) -> dict[str, str]:
    """Names of parameters by what they are called in a file."""
    found: dict[str, str] = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        longest = max((o.lstrip("-") for o in parameter.opts if o.startswith("--")), key=len, default=name)
        if name not in _NOT_KEPT:
            found[longest] = name
    return found


def as_toml(context: typer.Context) -> str:
    """The options of a run that were given, or read from a file, as a file that repeats it."""
    lines = [f"{HEADER}Repeat it with: faster-pruner {context.command.name} --config FILE"]
    for key, name in _names(context).items():
        value, source = context.params.get(name), context.get_parameter_source(name)
        if value is None or source is None or source.name == "DEFAULT":
            continue
        lines.append(f"{key} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A value in TOML: its basic strings are JSON's."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(each) for each in value)}]"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)


def keep(context: typer.Context, output: Path) -> None:
    """Write the options of a finished run beside its output: for `smaller` into `smaller.toml`.

    A file of that name that no run wrote stays, and where nothing can be written nothing is: a result is worth more.
    """
    file = output.with_name(output.name + ".toml")
    try:
        if file.exists() and not file.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
            return
        with beside(file) as staging:
            staging.write_text(as_toml(context), encoding="utf-8")
    except (OSError, OutputError):
        return


def reproducible(command: Callable[..., None]) -> Callable[..., None]:
    """A command with --config whose options are kept beside its --output when it has ended well."""

    def wrapped(*, context: typer.Context, config: Path | None, **given: Any) -> None:
        del config
        command(**given)
        output = given.get("output")
        if isinstance(output, Path) and speaks():
            keep(context, output)

    return with_more(wrapped, command, context=(typer.Context, inspect.Parameter.empty), config=(Config, None))
