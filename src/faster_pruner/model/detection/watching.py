"""One small forward, watched: every call of every module, in order, with copies of what went in and came out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from faster_pruner.data.batches import rows_at
from faster_pruner.host.mapped import copied

Inputs = Mapping[str, Any]


@dataclass
class Call:
    """One call of one module.

    Attributes:
        path: of the module, from the model's root.
        began: place among all beginnings and ends.
        given: its tensors by name of argument.
        source: the first tensor that it was given.
        ended: as `began`.
        value: the first tensor that it returned.
        returns: how many values it returned as a tuple; 0 for a bare tensor.
        handed: where among these the tensors are that it was given and hands on, by name of argument.
        cached: whether it was given a cache of keys and values.
    """

    path: str
    began: int
    given: dict[str, Tensor]
    source: Tensor | None
    ended: int = -1
    value: Tensor | None = None
    returns: int = 0
    handed: dict[str, int] = field(default_factory=dict[str, int])
    cached: bool = False


class Trace:
    """All calls of one forward, by path and in order."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.by_path: dict[str, list[Call]] = {}
        for call in calls:
            self.by_path.setdefault(call.path, []).append(call)

    def one(self, path: str) -> Call | None:
        """The first call of a module; None where it is never called."""
        return next(iter(self.by_path.get(path, ())), None)

    def count(self, path: str) -> int:
        """How often a module is called."""
        return len(self.by_path.get(path, ()))

    def inside(self, path: str) -> list[Call]:
        """Calls of a module and of all modules in it."""
        return [c for c in self.calls if c.path == path or c.path.startswith(path + ".")]


class Stopped(Exception):
    """The forward has got as far as anybody wants to look."""


@contextmanager
def hooked(stack: ExitStack) -> Generator[ExitStack]:
    """Hooks that go when the block ends, whatever happens."""
    with stack, torch.no_grad():
        yield stack


def run(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns; None where a hook has stopped it."""
    try:
        return model(**inputs)
    except Stopped:
        return None


def stop(module: nn.Module, args: Any, value: Any) -> None:
    """A forward hook that ends the forward."""
    del module, args, value
    raise Stopped


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in what a module returns."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((each for each in value if isinstance(each, Tensor)), None)
    return None


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a module is given, by name of argument."""
    names = [name for name in inspect.signature(module.forward).parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def watch(model: nn.Module, inputs: Inputs) -> Trace:
    """Run the model once and keep every call."""
    calls: list[Call] = []
    opened: list[Call] = []
    clock = 0

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal clock
            given = {
                name: copied(value)
                for name, value in named_arguments(module, args, kwargs).items()
                if isinstance(value, Tensor)
            }
            first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            opened.append(Call(path, clock, given, None if first is None else copied(first)))
            opened[-1].cached = any(isinstance(value, Cache) for value in (*args, *kwargs.values()))
            calls.append(opened[-1])
            clock += 1

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        nonlocal clock
        call = opened.pop()
        first = first_tensor(value)
        call.ended, call.value = clock, None if first is None else copied(first)
        if isinstance(value, tuple):
            call.returns = len(value)
            given = named_arguments(module, args, kwargs).items()
            call.handed = {n: i for n, v in given for i, own in enumerate(value) if isinstance(v, Tensor) and own is v}
        clock += 1

    with hooked(ExitStack()) as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(before(path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        run(model, inputs)
    return Trace(calls)


def rows_of(inputs: Inputs) -> int:
    """B."""
    return next(v.shape[0] for v in inputs.values() if isinstance(v, Tensor))


def repeated(inputs: Inputs, count: int) -> dict[str, Any]:
    """The first row, `count` times."""
    return rows_at(inputs, torch.zeros(count, dtype=torch.long), rows_of(inputs))


def twin(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares all weights: to be cut, never to be trained."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(each): each for each in tensors})


def in_the_open(model: nn.Module) -> nn.Module:
    """A twin in which attention is plain products: fused kernels swallow NaN."""
    own: Any = twin(model)
    try:
        own.set_attn_implementation("eager")
    except (AttributeError, ValueError, KeyError, ImportError):
        return model
    return own


@dataclass
class Read:
    """Plain numbers that a forward reads off the modules of a layer.

    Attributes:
        found: (path of the module, name) -> value; names with a dot are fields of the module's config.
    """

    found: dict[tuple[str, str], int] = field(default_factory=dict)

    def recording(self, path: str, own: type, prefix: str = "") -> type:
        """A subclass that notes which numbers are read."""
        found = self.found

        def getter(this: Any, name: str) -> Any:
            plain: Any = own.__getattribute__
            value = plain(this, name)
            if type(value) is int and not name.startswith("_") and name in object.__getattribute__(this, "__dict__"):
                found[path, prefix + name] = value
            return value

        return type(own.__name__, (own,), {"__getattribute__": getter, "__module__": own.__module__})


def numbers_read(model: nn.Module, inputs: Inputs, layer: str) -> dict[tuple[str, str], int]:
    """Numbers that are read off the modules of a layer, or off their configs, while the layer runs."""
    read = Read()
    own = twin(model)
    inside = own.get_submodule(layer)
    with hooked(ExitStack()) as stack:
        for name, module in inside.named_modules():
            cls = type(module)
            config = vars(module).get("config")
            if config is not None and hasattr(config, "model_type"):
                noted = copy.copy(config)
                noted.__class__ = read.recording(name, type(config), "config.")
                vars(module)["config"] = noted
            module.__class__ = read.recording(name, cls)

        stack.callback(inside.register_forward_hook(stop).remove)
        run(own, inputs)
    for name, module in model.get_submodule(layer).named_modules():
        code = getattr(type(module).forward, "__code__", None)
        for attribute in getattr(code, "co_names", ()):
            value = vars(module).get(attribute)
            if type(value) is int:
                read.found.setdefault((name, attribute), value)
    return read.found
