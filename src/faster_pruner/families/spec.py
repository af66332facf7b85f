"""What a family row says, and how it becomes the sublayers of a model.

A sublayer is a residual branch that ends in one Linear, the output projection ``y = x W' + b`` with W [d, n]. Its n
input columns are U units of g = n / U adjacent columns (a head, or a neuron). Removing a unit removes its columns of W
and the rows of the producers that compute them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from faster_pruner.errors import CheckpointError

Kind = Literal["attention", "ffn"]


@dataclass(frozen=True, kw_only=True)
class UnitSize:
    """Where the number of columns of one unit is read: `attribute` of `module`, a path inside one layer."""

    module: str
    attribute: str


@dataclass(frozen=True, kw_only=True)
class Follower:
    """An attribute that must follow when units are removed: the number of units, or of columns."""

    module: str
    attribute: str
    counts: Literal["units", "columns"]


@dataclass(frozen=True, kw_only=True)
class SublayerSpec:
    """One kind of sublayer of a family; all paths are inside one layer.

    Attributes:
        kind: attention or ffn.
        output: the output projection.
        producers: the Linears whose rows compute its input columns.
        residual: the module whose first input is the residual stream that the branch's output is added to.
        branch: for attention, the module to replace when no unit is left (stock code cannot view zero heads); None
            where zero works.
        unit_size: where the columns per unit are read; None for 1.
        followers: attributes that follow the unit count.
        config_key: the config field that counts the units.
        stock: whether the stock class builds another number of units when that field says so. (Heads: no, where it
            takes the head size to be the width divided by their number.)
    """

    kind: Kind
    output: str
    producers: tuple[str, ...]
    residual: str
    branch: str | None = None
    unit_size: UnitSize | None = None
    followers: tuple[Follower, ...] = ()
    config_key: str
    stock: bool = False


@dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """One row of the family table.

    Attributes:
        model_type: transformers' name for the family.
        layers: path of the list of layers inside the base model.
        sublayers: in the order in which a layer runs them.
    """

    model_type: str
    layers: str
    sublayers: tuple[SublayerSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """One sublayer of one model: paths from the model's root, and sizes as they are now.

    Attributes:
        name: `layers.<i>.<kind>`.
        layer: index of the layer.
        spec: the family's description.
        prefix: path of the layer from the model's root, with the trailing dot.
        units: U.
        unit_size: g, columns per unit.
        width: d, the width of the residual stream.
    """

    name: str
    layer: int
    spec: SublayerSpec
    prefix: str
    units: int
    unit_size: int
    width: int

    @property
    def kind(self) -> Kind:
        """Attention or ffn."""
        return self.spec.kind

    @property
    def columns(self) -> int:
        """n, input columns of the output projection."""
        return self.units * self.unit_size

    @property
    def output_path(self) -> str:
        """Path of the output projection."""
        return self.prefix + self.spec.output

    @property
    def residual_path(self) -> str:
        """Path of the module whose first input is the residual stream."""
        return self.prefix + self.spec.residual

    @property
    def producer_paths(self) -> tuple[str, ...]:
        """Paths of the producers."""
        return tuple(self.prefix + producer for producer in self.spec.producers)

    def output_of(self, model: nn.Module) -> nn.Linear:
        """The output projection in `model`."""
        module = model.get_submodule(self.output_path)
        assert isinstance(module, nn.Linear)
        return module


def base_model(model: nn.Module) -> tuple[nn.Module, str]:
    """The headless model inside a task model, and its path with a trailing dot (empty when the model is headless)."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    if prefix and hasattr(model, prefix):
        return model.get_submodule(prefix), prefix + "."
    return model, ""


def resolve(model: nn.Module, family: FamilySpec) -> list[Sublayer]:
    """All sublayers of `model` in the order in which it runs them.

    Raises:
        CheckpointError: when a module is missing or the sizes of an output projection do not divide into units.
    """
    base, prefix = base_model(model)
    layers = base.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    return [
        _resolve_one(layer, f"{prefix}{family.layers}.{index}.", index, spec)
        for index, layer in enumerate(layers)
        for spec in family.sublayers
    ]


def _resolve_one(layer: nn.Module, prefix: str, index: int, spec: SublayerSpec) -> Sublayer:
    """One sublayer of one layer."""
    try:
        output = layer.get_submodule(spec.output)
    except AttributeError as error:
        raise CheckpointError(f"layer {index} has no module {spec.output!r}: {error}") from error
    assert isinstance(output, nn.Linear)
    size = 1
    if spec.unit_size is not None:
        size = int(getattr(layer.get_submodule(spec.unit_size.module), spec.unit_size.attribute))
    if size < 1 or output.in_features % size:
        raise CheckpointError(
            f"layer {index}: {spec.output} takes {output.in_features} columns, which are not whole units of {size}"
        )
    units = output.in_features // size
    return Sublayer(
        name=f"layers.{index}.{spec.kind}",
        layer=index,
        spec=spec,
        prefix=prefix,
        units=units,
        unit_size=size,
        width=output.out_features,
    )
