"""What else follows when units go, and what stands for a branch without any: found by trying on one layer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.errors import UnsupportedModelError
from faster_pruner.host.mapped import copied
from faster_pruner.model.detection.branches import Branch
from faster_pruner.model.detection.place import Place
from faster_pruner.model.detection.probing import in_argument, in_tensor, reached_from
from faster_pruner.model.detection.watching import (
    Stopped,
    hooked,
    numbers_read,
    repeated,
    rows_of,
    run,
    twin,
)
from faster_pruner.model.passes import masked_by, tensors_in
from faster_pruner.model.shrink import shrink
from faster_pruner.model.spec import FollowerSpec, Sublayer, SublayerSpec, resolve_layer

# How many sets of numbers are tried.
_TRIES = 48
_TOLERANCE = 1e-5
# Numbers that are sizes of one unit, or of something else.
_NEVER = re.compile(
    r"(?<!all_)head_(dim|size)$|^d_kv|key_value_proj_dim|layer|window|rotary|max_|vocab|kernel|stride|padding|eps|_id$"
)
# Numbers that usually count units or what belongs to them.
_LIKELY = re.compile(r"heads?$|n_kv|head_kv|head_size|dim$|size$|width|split|inner|features|channels|^groups$|embd$")
# Numbers that count query heads per key/value head.
_PER_GROUP = re.compile(r"key_value_groups|n_rep|groups")
_RATHER_NOT = re.compile(r"num_key_value_groups|n_rep|hidden_size$|^d_model$|block|chunk|group_size|^in_|^out_")


def completed(place: Place, branch: Branch, plain: SublayerSpec) -> tuple[SublayerSpec | None, str]:
    """The sublayer with its followers and its emptied form; or None, and why."""
    tensors = [*_tensors(place, branch), *_arguments(place, branch)]
    numbers = _numbers(place, branch)
    reason = ""
    for chosen in _subsets(numbers, branch):
        spec = replace(plain, followers=(*chosen, *tensors))
        why = tried(place, spec, [_all_but_one(branch), _some(branch)])
        if not why:
            return _emptied(place, branch, spec), ""
        reason = reason or why
    return None, reason


def _all_but_one(branch: Branch) -> Tensor:
    return torch.arange(branch.units).view(branch.groups, -1)[:, 1:].flatten()


def _some(branch: Branch) -> Tensor:
    in_group = branch.units // branch.groups
    return torch.arange(branch.units).view(branch.groups, in_group)[:, in_group // 2 :].flatten()


def _subsets(numbers: list[FollowerSpec], branch: Branch) -> Iterator[tuple[FollowerSpec, ...]]:
    """Sets of numbers that may follow, the likeliest first: all of them, then all but one, and so on."""
    likely = [n for n in numbers if _LIKELY.search(n.name) and not _RATHER_NOT.search(n.name)]
    likely += [n for n in numbers if n.groups > 1 or (branch.shared and "key_value_groups" in n.name)]
    unlikely = [n for n in numbers if n not in likely]
    tries = 0
    for more in range(len(unlikely) + 1):
        for less in range(len(likely) + 1):
            for added in itertools.combinations(unlikely, more):
                for dropped in itertools.combinations(likely, less):
                    yield tuple(n for n in numbers if (n in likely and n not in dropped) or n in added)
                    tries += 1
                    if tries >= _TRIES:
                        return


def _numbers(place: Place, branch: Branch) -> list[FollowerSpec]:
    """Numbers that the branch's modules read and that may count units."""
    around = common(place, branch)
    found = []
    for (module, name), value in numbers_read(place.model, place.inputs, place.layer).items():
        near = module == around or module.startswith(around + ".") or around.startswith(module + ".") or not around
        near = near or module == ""
        groups = branch.groups if value * branch.groups == branch.units and _PER_GROUP.search(name) else 1
        if not near or value * groups < branch.units or value * groups % branch.units or _NEVER.search(name):
            continue
        if any(place.inside(path) == module for path in (*branch.producers, branch.projection)):
            continue
        found.append(FollowerSpec(module=module, name=name, groups=groups))
    return found


def common(place: Place, branch: Branch) -> str:
    """Path inside the layer of the smallest module that holds all producers."""
    paths = [place.inside(path).split(".")[:-1] for path in branch.producers]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return ".".join(names[0] for names in shared)


def _tensors(place: Place, branch: Branch) -> Iterator[FollowerSpec]:
    """Parameters and buffers with entries of units."""
    around = common(place, branch)
    root = place.open.get_submodule(f"{place.layer}.{around}".removesuffix("."))
    own = {place.inside(path) for path in (*branch.producers, branch.projection)}
    for name, module in root.named_modules():
        path = f"{around}.{name}".strip(".")
        # a module that is never called may still be read: code that convolves by a fused kernel takes its weight
        if path in own or not (_between(place, branch, path) or (name and not _called(place, path))):
            continue
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            axis = _axis_of(place, branch, tensor, partial(in_tensor, module, key))
            if axis is not None:
                yield FollowerSpec(module=path, name=key, axis=axis)


def _called(place: Place, path: str) -> bool:
    """Whether a module of the layer, or one inside it, is called."""
    return bool(place.trace.inside(f"{place.layer}.{path}"))


def _between(place: Place, branch: Branch, path: str) -> bool:
    """Whether a module runs between the first producer and the projection, or around them."""
    call, end = place.trace.one(f"{place.layer}.{path}".removesuffix(".")), place.trace.one(branch.projection)
    start = place.trace.one(next(iter(branch.producers)))
    if call is None or end is None or start is None:
        return path == ""
    return call.began < end.began and call.ended > start.began


def _arguments(place: Place, branch: Branch) -> Iterator[FollowerSpec]:
    """Arguments with entries of units, of the smallest module that is given them."""
    around = common(place, branch)
    path = f"{place.layer}.{around}".removesuffix(".")
    call, module = place.trace.one(path), place.open.get_submodule(path)
    if call is None:
        return
    for name, tensor in call.given.items():
        if not tensor.is_floating_point() or tensor.ndim < 3:
            continue
        axis = _axis_of(place, branch, tensor, partial(in_argument, module, name), exact=True)
        if axis is not None:
            yield FollowerSpec(module=around, name=name, axis=axis, argument=True, returned=call.handed.get(name, 0))


def _axis_of(
    place: Place,
    branch: Branch,
    tensor: Tensor,
    start: Callable[[int, range], Callable[[ExitStack], None]],
    *,
    exact: bool = False,
) -> int | None:
    """The axis of a tensor along which units lie; None when there is none."""
    if not tensor.is_floating_point():
        return None
    inputs = repeated(place.inputs, 1)
    for axis, whole in enumerate(tensor.shape):
        if whole % branch.units or whole < branch.units:
            continue
        if exact and whole not in (branch.units, branch.units * rows_of(place.inputs)):
            continue
        per = 1 if exact else whole // branch.units
        if all(
            _reaches_only(place, branch, inputs, start(axis, range(unit * per, (unit + 1) * per)), unit)
            for unit in (0, branch.units - 1)
        ):
            return axis
    return None


def _reaches_only(place: Place, branch: Branch, inputs: Any, start: Callable[[ExitStack], None], unit: int) -> bool:
    """Whether what `start` does reaches columns of one unit and no others."""
    try:
        reached = reached_from(place.open, inputs, place.layer, branch.projection, start)
    except (RuntimeError, ValueError, IndexError):
        return False
    if reached.numel() != branch.units * branch.size:
        return False
    units = reached.unflatten(0, (branch.units, branch.size)).any(dim=1)
    return bool(units[unit]) and int(units.sum()) == 1


def placed(place: Place, spec: SublayerSpec) -> Sublayer:
    """The sublayer in the layer that is looked at."""
    layer = place.model.get_submodule(place.layer)
    stack = replace(place.stack, sublayers=(spec,))
    own = resolve_layer(layer, place.layer + ".", place.indices[0], stack)
    return next(own)


def tried(place: Place, spec: SublayerSpec, keeps: list[Tensor]) -> str:
    """Why a sublayer is not what it seems: where it differs when it is cut from when it is masked; empty if nowhere."""
    try:
        sublayer = placed(place, spec)
    except UnsupportedModelError as error:
        return str(error)
    ways = [place.model] if place.open is place.model else [place.model, place.open]
    for model, keep in itertools.product(ways, keeps):
        mask = torch.zeros(sublayer.units).index_fill(0, keep, 1.0).repeat_interleave(sublayer.unit_size)
        own = twin(model)
        try:
            shrink(own, sublayer.parts, keep)
            found = layer_value(own, place, None, "")
        except Exception:  # whatever a model's code does with sizes that it was not written for
            return f"the model's own code cannot run with {keep.numel()} of its {sublayer.units} units"
        expected = layer_value(model, place, mask, sublayer.parts.projection)
        if not first_same(found, expected):
            return f"with {keep.numel()} of its {sublayer.units} units its values are not those with the rest masked"
    return ""


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether values agree up to rounding."""
    if found.shape != expected.shape:
        return False
    if not expected.numel():
        return True
    scale = max(1.0, float(expected.abs().max()))
    return bool(torch.isfinite(found).all()) and float((found - expected).abs().max()) <= _TOLERANCE * scale


def all_same(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether all values agree up to rounding."""
    return bool(found) and len(found) == len(expected) and all(map(same, found, expected))


def first_same(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether the first values agree; of others (a layer also returns attention weights) those of one shape."""
    alike = [(f, e) for f, e in zip(found[1:], expected[1:], strict=False) if f.shape == e.shape]
    return all_same(found[:1], expected[:1]) and all(same(f, e) for f, e in alike)


def layer_value(model: nn.Module, place: Place, mask: Tensor | None, projection: str) -> list[Tensor]:
    """What the layer puts out, with a mask over the columns of a projection."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: Any, value: Any) -> None:
        seen.extend(copied(tensor) for tensor in tensors_in(value))
        raise Stopped

    with hooked(ExitStack()) as stack:
        if mask is not None:
            hook = model.get_submodule(projection).register_forward_pre_hook(masked_by(mask))
            stack.callback(hook.remove)
        stack.callback(model.get_submodule(place.layer).register_forward_hook(stop).remove)
        run(model, place.inputs)
    return seen


def _emptied(place: Place, branch: Branch, spec: SublayerSpec) -> SublayerSpec:
    """The sublayer with what stands for it when no unit is left; with at least one where nothing does."""
    nothing = torch.arange(0)
    if not tried(place, spec, [nothing]):
        return spec
    paths = [common(place, branch), *_holders(place, branch)]
    for path in dict.fromkeys(paths):
        call = place.trace.one(f"{place.layer}.{path}") if path else None
        inside = spec.stream.startswith(path + ".")
        if call is None or inside:
            continue
        other = replace(spec, branch=path, returns=call.returns)
        if not tried(place, other, [nothing]):
            return other
    return replace(spec, least=branch.groups)


def _holders(place: Place, branch: Branch) -> list[str]:
    """Modules that hold the producers, from the inside out."""
    around = common(place, branch).split(".")
    return [".".join(around[:i]) for i in range(len(around) - 1, 0, -1)]
