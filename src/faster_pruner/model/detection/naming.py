"""What the things that were found are called: in the model's config, on its modules, among its inputs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.model.detection.branches import Branch
from faster_pruner.model.detection.stacks import Layers
from faster_pruner.model.detection.watching import Inputs, Trace
from faster_pruner.model.spec import HEAD_SIZE, Stack, SublayerSpec, UnitSize

_SIZES = re.compile(r"head_(dim|size)|kv_channels|d_kv|key_value_proj_dim|size_per_head")
_COUNTS = re.compile(r"heads|n_head|n_kv")
_FFN = re.compile(r"intermediate|ffn|d_ff|^dff$|n_inner|mlp|hidden_dim|feed_forward|inner_size|d_inner")
_HEADS = re.compile(r"heads|n_head|num_.*groups?$")
_GROUPS = re.compile(r"key_value|kv")


def unit_size_of(model: nn.Module, layer: str, branch: Branch) -> UnitSize | int | None:
    """Where a unit's size can be read; the number itself where that is nowhere."""
    if branch.size == 1:
        return None
    numbers = list(_numbers(model, layer, branch))
    for module, name, value in numbers:
        if value == branch.size and _SIZES.search(name):
            return UnitSize(module=module, attribute=name)
    for module, name, value in sorted(numbers, key=lambda n: not _GROUPS.search(n[1])):
        if value == branch.units and _COUNTS.search(name) and not _SIZES.search(name):
            return UnitSize(module=module, attribute=name, counts="units")
    return branch.size


def _numbers(model: nn.Module, layer: str, branch: Branch) -> Iterator[tuple[str, str, int]]:
    """(path inside the layer, name, value) of numbers on the modules around a branch, the inner ones first."""
    inside = [path.removeprefix(layer).removeprefix(".") for path in branch.producers]
    around = {path.rsplit(".", i)[0] if i <= path.count(".") else "" for path in inside for i in range(1, 9)}
    for path in sorted(around, key=lambda path: -len(path)):
        module = model.get_submodule(f"{layer}.{path}".removesuffix("."))
        for name, value in vars(module).items():
            if type(value) is int and not name.startswith("_"):
                yield path, name, value
        for name, value in _fields(vars(module).get("config")).items():
            if type(value) is int and not name.startswith("_"):
                yield path, f"config.{name}", value


def _fields(config: Any) -> dict[str, Any]:
    """What a config says; nothing where there is none."""
    return getattr(config, "__dict__", {})


def _config(model: Any, stack: Stack) -> Any:
    """The config of a stack; None of a model without one."""
    return getattr(model.config, stack.config) if stack.config else getattr(model, "config", None)


def config_fields(model: Any, stack: Stack, branch: Branch, *, ffn: bool) -> tuple[str, ...]:
    """Config fields that are proportional to the units, the one that counts them first."""
    config = _config(model, stack)
    pattern = _FFN if ffn else _HEADS
    named = {
        name: value
        for name, value in _fields(config).items()
        if type(value) is int and pattern.search(name) and not _SIZES.search(name) and value > 0
    }
    side = "decoder" if "decoder" in stack.layers else "encoder"
    other = "encoder" if side == "decoder" else "decoder"

    def rank(name: str) -> tuple[bool, bool, bool]:
        return other in name, side not in name, not _GROUPS.search(name)

    counting = sorted((name for name, value in named.items() if value == branch.units), key=rank)
    if not counting:
        return ()
    others = [n for n, v in named.items() if n not in counting and v % branch.units == 0 and not ffn and other not in n]
    return (counting[0], *[n for n in others if n != counting[0]])


def has_groups(model: Any, stack: Stack, branch: Branch, fields: tuple[str, ...]) -> bool:
    """Whether the config counts key/value heads that are as many as the units, and more query heads.

    Args:
        model: that is looked at.
        stack: of the branch.
        branch: attention.
        fields: `config_fields` of it.
    """
    config = _config(model, stack)
    counted = bool(fields) and bool(_GROUPS.search(fields[0]))
    return counted and any(getattr(config, name) > branch.units for name in fields[1:])


def with_stock(model: Any, stack: Stack, spec: SublayerSpec, layer: str, head_size: int) -> SublayerSpec:
    """The sublayer with `stock`, and just those config fields that say it all, where the stock class heeds them."""
    unstated = spec.mixes_tokens and not getattr(_config(model, stack), HEAD_SIZE, None)
    for fields in dict.fromkeys((spec.config[:1], spec.config)):
        for size in (0, head_size) if unstated else (0,):
            said = replace(spec, config=fields, head_size=size)
            if fields and _builds(model, stack, said, layer):
                return replace(said, stock=True)
    return spec


def _builds(model: Any, stack: Stack, spec: SublayerSpec, layer: str) -> bool:
    """Whether the stock class builds other numbers of units, and nothing else, when the counting fields say so."""
    config = copy.deepcopy(model.config)
    own = getattr(config, stack.config) if stack.config else config
    build: Any = type(model)
    try:
        for name in spec.config:
            setattr(own, name, getattr(own, name) // 2)
        if spec.head_size:
            setattr(own, HEAD_SIZE, spec.head_size)
        with torch.device("meta"):
            other = build(config)
    except Exception:  # a class whose code does not allow for it
        return False
    folder = layer.rpartition(".")[0]
    computing = {producer.module for producer in spec.producers if set(producer.blocks) != {"fixed"}}
    paths = {spec.projection, *computing}
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    after = {name: parameter.shape for name, parameter in other.named_parameters()}
    changed = {name.rpartition(".")[0] for name in before if before[name] != after.get(name)}
    inside = {path.removeprefix(folder + ".").partition(".")[2] for path in changed if path.startswith(folder + ".")}
    return before.keys() == after.keys() and inside == paths and all(p.startswith(folder + ".") for p in changed)


def mask_of(layers: Layers, trace: Trace, inputs: Inputs) -> str:
    """Key among the inputs of the mask of a stack's tokens; empty when there is none."""
    call = trace.one(layers.layer(0))
    keys = [key for key in ("decoder_attention_mask", "attention_mask") if isinstance(inputs.get(key), Tensor)]
    decodes = "decoder" in layers.path and "decoder_input_ids" in inputs
    for key in keys:
        if (key.startswith("decoder")) != decodes or call is None or call.source is None:
            continue
        if inputs[key].shape == call.source.shape[:2]:
            return key
    return ""
