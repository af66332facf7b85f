"""Commands whose parameters are groups of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, cast, get_type_hints


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are groups are replaced by the options in them."""
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for name, parameter in own.items():
        if is_dataclass(hints[name]):
            options = _options(cast(type, hints[name]))
            groups[name] = (cast(type, hints[name]), [option.name for option in options])
            parameters += options
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def wrapped(**given: Any) -> None:
        values = {
            name: group(**{option: given.pop(option) for option in options})
            for name, (group, options) in groups.items()
        }
        command(**values, **given)

    return with_parameters(wrapped, command, parameters)


def with_parameters(
    wrapped: Callable[..., None], command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """What wraps a command, under its name and with these parameters, as typer reads them."""
    # not functools.wraps: whoever follows __wrapped__ would find the command's own parameters again
    wrapped.__name__, wrapped.__doc__, wrapped.__module__ = command.__name__, command.__doc__, command.__module__
    wrapped.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def with_more(
    wrapped: Callable[..., None], command: Callable[..., None], **more: tuple[Any, Any]
) -> Callable[..., None]:
    """What wraps a command that is flat already: with its parameters, and more of them (annotation, default)."""
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in more.items()
    ]
    return with_parameters(wrapped, command, [*inspect.signature(command).parameters.values(), *added])


def _options(group: type) -> list[inspect.Parameter]:
    """The options of a group as parameters."""
    hints = get_type_hints(group, include_extras=True)

    def default(each: Field[Any]) -> Any:
        if each.default_factory is not MISSING:
            return each.default_factory()
        return inspect.Parameter.empty if each.default is MISSING else each.default

    return [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default(each), annotation=hints[each.name])
        for each in fields(group)
    ]
