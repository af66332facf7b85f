"""Where a model keeps its layers, and which of them are built alike."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from torch import nn

from faster_pruner.model.detection.probing import is_matrix
from faster_pruner.model.detection.watching import Trace
from faster_pruner.model.spec import base_prefix


@dataclass(frozen=True)
class Layers:
    """A list of layers.

    Attributes:
        path: inside the base model.
        prefix: path of the list from the model's root, with a trailing dot.
        names: of its layers.
        groups: indices of layers that are built alike, those of the first one first.
        calls: how often each of them runs in one forward.
    """

    path: str
    prefix: str
    names: list[str]
    groups: list[list[int]]
    calls: int

    def layer(self, index: int) -> str:
        """Path of a layer from the model's root."""
        return self.prefix + self.names[index]


def find_layers(model: nn.Module, trace: Trace, left: dict[str, str]) -> list[Layers]:
    """The lists of layers of a model, outermost first; `left` is told of those that cannot be described."""
    base, found = base_prefix(model), []
    taken: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(path.startswith(t + ".") for t in taken):
            continue
        if not _is_stack(module, path, trace):
            continue
        taken.append(path)
        if not path.startswith(base):
            left[path] = "outside the base model"
            continue
        names = [name for name, _ in module.named_children()]
        calls = {trace.count(f"{path}.{name}") for name in names}
        if len(calls) > 1:
            left[path] = f"its layers run {' or '.join(map(str, sorted(calls)))} times in one forward, not all alike"
            continue
        found.append(Layers(path.removeprefix(base), path + ".", names, _groups(module), calls.pop()))
    return found


def _is_stack(module: nn.Module, path: str, trace: Trace) -> bool:
    """Whether all children are layers: called with what has the width of what they return, with matrices inside."""
    children = list(module.named_children())
    if not children:
        return False
    for name, child in children:
        call = trace.one(f"{path}.{name}")
        if call is None or call.source is None or call.value is None:
            return False
        if call.source.shape[-1] != call.value.shape[-1] or call.source.ndim != call.value.ndim:
            return False
        if sum(is_matrix(m) for m in child.modules()) < 2:
            return False
    return _chained(path, [name for name, _ in children], trace)


def _chained(path: str, names: list[str], trace: Trace) -> bool:
    """Whether layers run one after the other."""
    calls = [trace.one(f"{path}.{name}") for name in names]
    return all(a is not None and b is not None and a.ended < b.began for a, b in itertools.pairwise(calls))


def _groups(layers: nn.Module) -> list[list[int]]:
    """Indices of layers with the same modules of the same sizes."""
    found: dict[Any, list[int]] = {}
    for index, layer in enumerate(layers.children()):
        found.setdefault(_signature(layer), []).append(index)
    return list(found.values())


def _signature(layer: nn.Module) -> Any:
    """What two layers have in common that are built alike."""
    return tuple(
        (name, type(module).__name__, tuple((key, tuple(p.shape)) for key, p in module.named_parameters(recurse=False)))
        for name, module in layer.named_modules()
    )


def stack_names(layers: list[Layers]) -> list[str]:
    """A name for each list of layers: what tells its path from the others'."""
    if len(layers) == 1:
        return ["layers"]
    parts = [each.path.split(".") for each in layers]
    names = []
    for own in parts:
        kept = [p for p in own if not all(p in other for other in parts)]
        names.append("-".join(kept or own))
    return names if len(set(names)) == len(names) else ["-".join(own) for own in parts]


def config_of(model: Any, layer: str) -> str:
    """Name of the attribute of the model's config that holds a stack's own; empty for the config itself."""
    parts = {
        name: value
        for name, value in getattr(getattr(model, "config", None), "__dict__", {}).items()
        if hasattr(value, "model_type")
    }
    paths = [layer.rsplit(".", i)[0] for i in range(layer.count(".") + 1)]
    holders = [*model.get_submodule(layer).modules(), *(model.get_submodule(path) for path in paths)]
    for module in holders:
        config = vars(module).get("config")
        for name, value in parts.items():
            if config is value:
                return name
    return ""
