"""Families as data: where a model keeps its sublayers, and what each consists of.

A family is a list of stacks (a text tower, a vision tower, an encoder, a decoder); a stack is a list of layers that all
look alike; a layer runs sublayers one after the other. `resolve` reads the sizes of one model off its modules. To every
algorithm all sublayers are alike: what differs between attention and feed-forward is data here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.shrink import Block, Constant, Follower, Parts, Producer

# Output features of a producer's block: an equal share of what the other blocks leave, divided among the units; as many
# as the projection has columns; or an equal share of the rest that belongs to no unit.
Features = Literal["equal", "columns", "fixed"]

# What a producer reads: the residual stream of its own stack (normalised or not); what another stack puts out; or it is
# called with other things, too, so that its weights cannot be re-aimed at one of them.
Source = Literal["stream", "memory", "several"]

# How a branch y joins the residual stream x: x + y; x + norm(y); or x + y with other branches of the layer that read
# the same x.
Join = Literal["add", "normed", "parallel"]

# Config field without which classes take the hidden size divided by the number of heads.
HEAD_SIZE = "head_dim"


@dataclass(frozen=True, kw_only=True)
class ProducerSpec:
    """A producer; see `shrink.Producer`.

    Attributes:
        module: path inside a layer.
        blocks: what its output features are, in order.
        source: what it reads.
        transposed: whether its weight is stored as [inputs, outputs].
    """

    module: str
    blocks: tuple[Features, ...] = ("equal",)
    source: Source = "stream"
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class UnitSize:
    """Where the size of a unit is read: an attribute (dots allowed) of a module inside the layer.

    Attributes:
        module: path inside a layer.
        attribute: its name.
        counts: whether it is the number of columns of a unit, or the number of units.
    """

    module: str
    attribute: str
    counts: Literal["columns", "units"] = "columns"


@dataclass(frozen=True, kw_only=True)
class FollowerSpec:
    """A follower; see `shrink.Follower`. How much of it belongs to a unit is read off the model.

    Attributes:
        module: path inside a layer.
        name: of the attribute or argument.
        axis: of a tensor; None for a number.
        argument: whether it is an argument of the module's forward, with one entry per unit.
        groups: units that a number counts as one.
        returned: where in what the module returns the argument is handed on; 0 for nowhere.
    """

    module: str
    name: str
    axis: int | None = None
    argument: bool = False
    groups: int = 1
    returned: int = 0


@dataclass(frozen=True, kw_only=True)
class SublayerSpec:
    """One kind of sublayer of a stack; all paths are inside one layer, the empty one is the layer itself.

    Attributes:
        kind: names it ("attention", "ffn"); sublayers of a kind are ranked together and get one size when asked to.
        unit: what one unit is called.
        projection: path of the output projection.
        producers: what computes its columns; the first one is called first.
        stream: path of the module whose first input is the residual stream that the branch joins.
        join: how it joins.
        norm: with `normed`, path of the module that normalises the branch.
        unit_size: where the size of a unit is read; None for one column.
        groups: adjacent runs of units that must stay equally large: query heads by their key/value head.
        mixes_tokens: whether every token's input has a part in every token's output.
        followers: what else follows.
        branch: path of the module to replace when no unit is left, where its code cannot run without one.
        returns: as in `shrink.Parts`.
        least: the fewest units that may be left.
        config: config fields that are proportional to the units, the one that counts them first.
        stock: whether the stock class builds another number of units when all of those fields say so.
        head_size: what the config must state as `HEAD_SIZE` for that; 0 where it does already, or nothing needs it.
        rounded: whether numbers of units in round multiples suit the hardware.
        buckets: in how many sizes it comes under bucketed allocation.
        transposed: whether the projection's weight is stored as [columns, outputs].
        layers: indices of the layers that have it; None for all.
    """

    kind: str
    unit: str = "unit"
    projection: str
    producers: tuple[ProducerSpec, ...]
    stream: str
    join: Join = "add"
    norm: str = ""
    unit_size: UnitSize | int | None = None
    groups: int = 1
    mixes_tokens: bool = False
    followers: tuple[FollowerSpec, ...] = ()
    branch: str = ""
    returns: int = 0
    least: int = 0
    config: tuple[str, ...] = ()
    stock: bool = False
    head_size: int = 0
    rounded: bool = False
    buckets: int = 4
    transposed: bool = False
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Layers that look alike.

    Attributes:
        layers: path of the list of layers inside the base model.
        sublayers: in the order in which a layer runs them.
        name: first part of the names of its sublayers.
        config: attribute of the model's config that holds this stack's own; empty for the config itself.
        mask: key among the model's inputs that says which of its tokens are real; empty when all are.
        calls: how often each of its layers runs in one forward (ALBERT's layers are one layer, run again and again):
            one decision is made for all calls, from statistics that are summed over them.
        memory: name of the stack whose output producers with that source read (an encoder's, in cross-attention).
    """

    layers: str
    sublayers: tuple[SublayerSpec, ...]
    name: str = "layers"
    config: str = ""
    mask: str = "attention_mask"
    calls: int = 1
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A row of the family table."""

    stacks: tuple[Stack, ...]


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """One sublayer of one model.

    Attributes:
        name: `<stack>.<layer>.<kind>`.
        stack: that it belongs to.
        layer: index of its layer.
        spec: what it is.
        prefix: path of its layer from the model's root, with the trailing dot.
        parts: its parts at their present sizes, with paths from the model's root.
    """

    name: str
    stack: Stack
    layer: int
    spec: SublayerSpec
    prefix: str
    parts: Parts

    @property
    def units(self) -> int:
        """U."""
        return self.parts.units

    @property
    def unit_size(self) -> int:
        """g, columns per unit."""
        return self.parts.unit_size

    @property
    def columns(self) -> int:
        """n, input columns of the projection."""
        return self.parts.columns

    @property
    def width(self) -> int:
        """d, features that the projection puts out."""
        return self.parts.width

    @property
    def alike(self) -> tuple[str, str]:
        """Sublayers with the same value are of one kind."""
        return self.stack.name, self.spec.kind

    @property
    def stream_path(self) -> str:
        """Path of the module whose first input is the residual stream."""
        return _placed(self.prefix, self.spec.stream)

    @property
    def aimed(self) -> tuple[Producer, ...]:
        """Producers that read the residual stream and nothing else, once: those that can be re-aimed, all or none."""
        found = zip(self.spec.producers, self.parts.producers, strict=True)
        chosen = tuple(producer for spec, producer in found if spec.source == "stream")
        several = self.stack.calls > 1 or any(spec.source == "several" for spec in self.spec.producers)
        return () if several or self.units == 0 else chosen

    def projection(self, model: nn.Module) -> nn.Module:
        """The output projection in `model`."""
        return model.get_submodule(self.parts.projection)

    def weight(self, model: nn.Module) -> Tensor:
        """[d, n], a view of the projection's weight; [d, 0] when no unit is left."""
        return matrix_of(self.projection(model), transposed=self.parts.transposed, width=self.width)

    def resized(self, parts: Parts) -> Sublayer:
        """The same sublayer with other sizes."""
        return replace(self, parts=parts)


def matrix_of(module: nn.Module, *, transposed: bool, width: int) -> Tensor:
    """[d, n]: the weight of a module that multiplies by a matrix, as ``y = x W'`` has it."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or isinstance(module, Constant):
        return next(iter([*module.parameters(), *module.buffers()])).new_zeros(width, 0)
    return weight.T if transposed else weight


def bias_of(module: nn.Module) -> nn.Parameter | None:
    """The bias of a module that multiplies by a matrix, None for one without."""
    return getattr(module, "bias", None)


@torch.no_grad()
def set_matrix(module: nn.Module, weight: Tensor, bias: Tensor | None = None, *, transposed: bool = False) -> None:
    """Overwrite the weight [d, n], and the bias [d] where one is given, in place."""
    if weight.numel():
        own: Any = module.weight
        own.copy_(weight.T if transposed else weight)
    there = bias_of(module)
    if bias is not None and there is not None:
        there.copy_(bias)


def base_prefix(model: nn.Module) -> str:
    """Path of the headless model inside a task model, with a trailing dot; empty when the model is headless."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    return prefix + "." if prefix and hasattr(model, prefix) else ""


def resolve(model: nn.Module, family: Family) -> list[Sublayer]:
    """All sublayers of a model as its stock class builds it, in the order of the family.

    Raises:
        UnsupportedModelError: a module is missing, or the sizes do not divide into units.
    """
    found: list[Sublayer] = []
    for stack in family.stacks:
        path = base_prefix(model) + stack.layers
        if stack.config and not hasattr(getattr(model, "config", None), stack.config):
            raise UnsupportedModelError(f"the config of {type(model).__name__} has no {stack.config!r}")
        try:
            layers = list(model.get_submodule(path).named_children())
        except AttributeError as error:
            raise UnsupportedModelError(f"{type(model).__name__} has no layers at {path!r}") from error
        for index, (name, layer) in enumerate(layers):
            found += list(resolve_layer(layer, f"{path}.{name}.", index, stack))
    return found


def resolve_layer(layer: nn.Module, prefix: str, index: int, stack: Stack) -> Iterator[Sublayer]:
    """The sublayers of one layer. Raises UnsupportedModelError."""
    for spec in stack.sublayers:
        if spec.layers is not None and index not in spec.layers:
            continue
        name = f"{stack.name}.{index}.{spec.kind}"
        try:
            parts = _parts(layer, prefix, spec)
        except (AttributeError, ValueError, IndexError, TypeError) as error:
            raise UnsupportedModelError(f"{name} is not what its family says: {error}") from error
        yield Sublayer(name=name, stack=stack, layer=index, spec=spec, prefix=prefix, parts=parts)


def _parts(layer: nn.Module, prefix: str, spec: SublayerSpec) -> Parts:
    """Sizes as they are in one layer. Raises a built-in error when something is missing or does not fit."""
    width, columns = _shape(layer, spec.projection, transposed=spec.transposed)
    size = 1
    if isinstance(spec.unit_size, int):
        size = spec.unit_size
    elif spec.unit_size is not None:
        found = attrgetter(spec.unit_size.attribute)(layer.get_submodule(spec.unit_size.module))
        size = int(found) if spec.unit_size.counts == "columns" else _divided(columns, int(found), spec.projection)
    units = _divided(columns, size, spec.projection)
    for path in (spec.stream, spec.norm, spec.branch):
        layer.get_submodule(path)
    return Parts(
        projection=prefix + spec.projection,
        units=units,
        unit_size=size,
        width=width,
        producers=tuple(_producer(layer, prefix, each, columns, units) for each in spec.producers),
        groups=spec.groups if _divided(units, spec.groups, spec.projection) else 1,
        followers=tuple(_follower(layer, prefix, each, units) for each in spec.followers),
        transposed=spec.transposed,
        branch=prefix + spec.branch if spec.branch else "",
        returns=spec.returns,
    )


def _placed(prefix: str, path: str) -> str:
    """A path inside a layer from the model's root; that of the layer itself for the empty one."""
    return (prefix + path).removesuffix(".")


def _shape(layer: nn.Module, path: str, *, transposed: bool) -> tuple[int, int]:
    """(outputs, inputs) of a module that multiplies by a matrix."""
    weight: Any = layer.get_submodule(path).weight
    if weight.ndim != 2:
        raise ValueError(f"{path} has a weight of {weight.ndim} dimensions, 2 are expected")
    return (weight.shape[1], weight.shape[0]) if transposed else (weight.shape[0], weight.shape[1])


def _divided(whole: int, by: int, what: str) -> int:
    """`whole` / `by`. Raises ValueError when that is not a whole number."""
    if by < 1 or whole % by:
        raise ValueError(f"{what}: {whole} does not divide by {by}")
    return whole // by


def _producer(layer: nn.Module, prefix: str, spec: ProducerSpec, columns: int, units: int) -> Producer:
    """One producer with the sizes of its blocks."""
    outputs, inputs = _shape(layer, spec.module, transposed=spec.transposed)
    like_columns = sum(block == "columns" for block in spec.blocks)
    rest = outputs - like_columns * columns
    share = _divided(rest, len(spec.blocks) - like_columns, spec.module) if len(spec.blocks) > like_columns else 0
    sizes = [columns if block == "columns" else share for block in spec.blocks]
    if share < 0 or sum(sizes) != outputs:
        raise ValueError(f"{spec.module} has {outputs} output features, its blocks say {' + '.join(map(str, sizes))}")
    blocks = tuple(
        Block(features=size, fixed=True) if block == "fixed" else Block(features=_divided(size, units, spec.module))
        for block, size in zip(spec.blocks, sizes, strict=True)
    )
    return Producer(
        path=prefix + spec.module,
        blocks=blocks,
        inputs=inputs,
        bias=bias_of(layer.get_submodule(spec.module)) is not None,
        transposed=spec.transposed,
    )


def _follower(layer: nn.Module, prefix: str, spec: FollowerSpec, units: int) -> Follower:
    """One follower with its entries per unit."""
    per_unit = 1
    if not spec.argument:
        found: Any = attrgetter(spec.name)(layer.get_submodule(spec.module))
        whole = int(found) * spec.groups if spec.axis is None else int(found.shape[spec.axis])
        per_unit = _divided(whole, units, f"{spec.module}.{spec.name}")
    return Follower(
        module=_placed(prefix, spec.module),
        name=spec.name,
        per_unit=per_unit,
        groups=spec.groups,
        axis=spec.axis,
        argument=spec.argument,
        whole=units if spec.argument else 0,
        returned=spec.returned,
    )


def parts_by_name(sublayers: Sequence[Sublayer]) -> dict[str, Parts]:
    """What `shrink.resize` asks for."""
    return {sublayer.name: sublayer.parts for sublayer in sublayers}


def with_parts(sublayers: Sequence[Sublayer], parts: Mapping[str, Parts]) -> list[Sublayer]:
    """The sublayers at other sizes."""
    return [sublayer.resized(parts[sublayer.name]) for sublayer in sublayers]
