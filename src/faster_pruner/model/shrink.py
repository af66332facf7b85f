"""Removes heads, neurons and other units from a model, physically: smaller matrices, nothing masked.

The only code that changes the size of anything, and it needs nothing but torch. faster-pruner prunes and loads with it;
a checkpoint that plain transformers cannot open carries a copy of it, word for word.

A sublayer is a branch that ends in one projection ``y = x W' + b``, W [d, n]. Its n input columns are U units of g
adjacent columns (a head, a key/value group with its query heads, a neuron). Removing a unit removes its columns of W
and the output features of the producers (query, key, value; gate, up) that compute them.
"""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Block:
    """Adjacent output features of a producer.

    Attributes:
        features: per unit, one unit after the other; of a fixed block: in all.
        fixed: whether they belong to no unit (keys that all heads share) and stay as they are.
    """

    features: int
    fixed: bool = False


@dataclass(frozen=True, kw_only=True)
class Producer:
    """A module that computes input columns of a projection.

    Attributes:
        path: of the module.
        blocks: its output features in order. A fused query-key-value has three blocks, a fused gate-and-up two.
        inputs: features that it reads.
        bias: whether it has a bias.
        transposed: whether its weight is stored as [inputs, outputs] (GPT-2's Conv1D).
    """

    path: str
    blocks: tuple[Block, ...]
    inputs: int
    bias: bool
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Follower:
    """Something beside the matrices that follows when units are removed.

    Attributes:
        module: path of the module that holds or is given it.
        name: of the attribute, or of the argument.
        per_unit: what the number counts per unit; or how many entries of the tensor belong to a unit.
        groups: units that the number counts as one (query heads per key/value head: units / groups).
        axis: of the tensor along which the units lie; None for a plain number.
        argument: whether the tensor is an argument of the module's forward that other modules share (a position bias).
        whole: entries of the argument when no unit is gone; along a longer axis they repeat (one set for each row).
        returned: where in what the module returns the argument is handed on; 0 for nowhere.
    """

    module: str
    name: str
    per_unit: int = 1
    groups: int = 1
    axis: int | None = None
    argument: bool = False
    whole: int = 0
    returned: int = 0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one sublayer of one model, at their present sizes.

    Attributes:
        projection: path of the output projection.
        units: U.
        unit_size: g, columns per unit.
        width: d, features that the projection puts out.
        producers: what computes the projection's input columns.
        groups: adjacent runs of units that must stay equally large (query heads that share a key/value head).
        followers: what else follows.
        transposed: as for `Producer`, of the projection.
        branch: path of the module to replace when no unit is left, where its code cannot run without one.
        returns: how many values that module's forward returns as a tuple; 0 for a bare tensor.
    """

    projection: str
    units: int
    unit_size: int
    width: int
    producers: tuple[Producer, ...]
    groups: int = 1
    followers: tuple[Follower, ...] = ()
    transposed: bool = False
    branch: str = ""
    returns: int = 0

    @property
    def columns(self) -> int:
        """n, input columns of the projection."""
        return self.units * self.unit_size

    def first(self, units: int) -> Tensor:
        """[units]: so many units, the first ones of every group."""
        every = torch.arange(self.units, device="cpu").view(self.groups, self.units // self.groups)
        return every[:, : units // self.groups].flatten()


class Constant(nn.Module):
    """What is left of a projection without input columns: its bias, whatever it is given."""

    bias: nn.Parameter | None

    def __init__(self, width: int, bias: nn.Parameter | None, *, like: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = 0, width
        self.register_parameter("bias", bias)
        # saved in the place of the stock weight: a class that has one of another shape cannot fill it with anything
        self.register_buffer("weight", like.new_zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., any] -> [..., d]."""
        value = self.get_buffer("weight").new_zeros(self.out_features) if self.bias is None else self.bias
        return value.expand(*x.shape[:-1], self.out_features).clone(memory_format=torch.contiguous_format)


class Nothing(nn.Module):
    """What is left of a producer that computes no column."""

    in_features, out_features = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """[..., any] -> [..., 0]."""
        return x.new_zeros((*x.shape[:-1], 0))


class Emptied(nn.Module):
    """Stands for a branch that has no unit left: zero columns, or what its projection makes of them where it holds it.

    Its values keep the shape of the stock module's: a tensor, or a tuple that begins with it and goes on with what the
    stock module hands on, attention weights of zero heads [B, 0, S, S] where it returns weights, and None.
    """

    def __init__(self, parts: Parts, inside: str = "", projection: nn.Module | None = None, config: Any = None) -> None:
        # not that of the stock class, which may come next in line
        nn.Module.__init__(self)
        self.returns, self.inside, self.config = parts.returns, inside, config
        self.handed = {f.name: f.returned for f in parts.followers if 0 < f.returned < parts.returns}
        self.names: tuple[str, ...] = ()
        if projection is not None:
            *folders, name = inside.split(".")
            holder: nn.Module = self
            for folder in folders:
                holder.add_module(folder, nn.Module())
                holder = holder.get_submodule(folder)
            holder.add_module(name, projection)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever the stock module is given -> what it would return."""
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        nothing = x.new_zeros((*x.shape[:-1], 0))
        value = self.get_submodule(self.inside)(nothing) if self.inside else nothing
        if not self.returns:
            return value
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        # only attention that is written out has weights to return; asked for by an argument, they may be a value more
        asked = "output_attentions" in self.names and bool(given.get("output_attentions"))
        further: list[Any] = [None] * max(self.returns - 1, asked)
        free = [place for place in range(len(further)) if place + 1 not in self.handed.values()]
        if free and x.dim() == 3 and (asked or getattr(self.config, "_attn_implementation", None) == "eager"):
            further[free[0]] = x.new_zeros((x.shape[0], 0, x.shape[1], x.shape[1]))
        for name, place in self.handed.items():
            further[place - 1] = given.get(name)
        return (value, *further)

    @staticmethod
    def in_place_of(stock: nn.Module, *args: Any) -> "Emptied":
        """One of the stock module's class, too: by that transformers finds the modules whose weights it collects."""
        own = _emptied_class(type(stock))(*args, config=getattr(stock, "config", None))
        own.names = tuple(inspect.signature(stock.forward).parameters)
        return own

    def __reduce_ex__(self, protocol: Any) -> Any:
        # its class has no name that could be imported
        stock = None if type(self) is Emptied else type(self).__mro__[2]
        return _new_emptied, (stock,), self.__dict__


@cache
def _emptied_class(stock: type[nn.Module]) -> type[Emptied]:
    """Emptied, as a subclass of a stock module's class that shares nothing with it but that."""
    return type(Emptied.__name__, (Emptied, stock), {})


def _new_emptied(stock: type[nn.Module] | None) -> Emptied:
    """One without anything in it, for copy and pickle."""
    own = Emptied if stock is None else _emptied_class(stock)
    return own.__new__(own)


class KeptEntries:
    """A forward pre-hook: of an argument with entries for all units, hand on those of the units that are left.

    Where the module returns its argument for the next layer to use (T5), `restore` puts all entries back.
    """

    def __init__(self, module: nn.Module, follower: Follower) -> None:
        self.given: dict[int, tuple[Tensor, Tensor]] = {}
        names = [name for name in inspect.signature(module.forward).parameters if name != "self"]
        self.name, self.axis, self.whole = follower.name, follower.axis, follower.whole
        self.position = names.index(follower.name) if follower.name in names else len(names)

    @staticmethod
    def buffer(name: str) -> str:
        """Name of the buffer that says which entries are left; it is saved with the weights."""
        return f"kept_{name}"

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Replace the argument."""
        kept = module.get_buffer(self.buffer(self.name))
        if isinstance(kwargs.get(self.name), Tensor):
            kwargs = {**kwargs, self.name: self._chosen(kwargs[self.name], kept)}
        elif len(args) > self.position and isinstance(args[self.position], Tensor):
            chosen = self._chosen(args[self.position], kept)
            args = (*args[: self.position], chosen, *args[self.position + 1 :])
        return args, kwargs

    def _chosen(self, tensor: Tensor, kept: Tensor) -> Tensor:
        """The entries that are left."""
        assert self.axis is not None
        size = tensor.shape[self.axis]
        if self.whole and size > self.whole:
            starts = torch.arange(0, size, self.whole, device=kept.device)
            kept = (starts[:, None] + kept).flatten()
        chosen = tensor.index_select(self.axis, kept.to(tensor.device))
        self.given[id(chosen)] = chosen, tensor
        return chosen

    def restore(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        """A forward hook: of what the module returns, put the argument back as it was given."""
        del module
        given = kwargs.get(self.name, args[self.position] if len(args) > self.position else None)
        chosen, whole = self.given.pop(id(given), (None, None))
        if chosen is None or not isinstance(value, tuple):
            return value
        return tuple(whole if each is chosen else each for each in value)


def shrink(model: nn.Module, parts: Parts, keep: Tensor) -> Parts:
    """Leave only the units in `keep` [k], sorted indices, in place; returns the parts at their new sizes."""
    units = keep.numel()
    if units == parts.units:
        return parts
    smaller = replace(parts, units=units)
    if units == 0:
        _empty(model, parts)
        return smaller
    projection = model.get_submodule(parts.projection)
    _select(projection, "weight", _entries(keep, parts.unit_size), axis=0 if parts.transposed else 1)
    _count(projection, ("in_features", "nx"), smaller.columns)
    for producer in parts.producers:
        module = model.get_submodule(producer.path)
        index = _features(producer, parts.units, keep)
        _select(module, "weight", index, axis=1 if producer.transposed else 0)
        if producer.bias:
            _select(module, "bias", index, axis=0)
        _count(module, ("out_features", "nf"), index.numel())
    for follower in parts.followers:
        _follow(model.get_submodule(follower.module), follower, keep, next(projection.parameters()).device)
    return smaller


def resize(model: nn.Module, parts: Mapping[str, Parts], sizes: Any) -> dict[str, Parts]:
    """Give the sublayers of a stock model the stated sizes, keeping the first units; weights are loaded next.

    Args:
        model: as the stock class builds it.
        parts: of its sublayers, by name.
        sizes: units by name of sublayer, as a config says them: nothing in it is trusted.

    Returns:
        The parts at their new sizes.

    Raises:
        ValueError: a size is not one that its sublayer can have.
    """
    if not isinstance(sizes, dict):
        raise ValueError("the sizes are not a mapping")
    for name, units in sizes.items():
        if name not in parts:
            raise ValueError(f"{str(name)[:60]!r} is not one of the {len(parts)} sublayers")
        own = parts[name]
        if type(units) is not int or units not in range(0, own.units + 1, own.groups):
            steps = f", in steps of {own.groups}" if own.groups > 1 else ""
            raise ValueError(f"{name} cannot have {str(units)[:40]} units: it has 0 to {own.units}{steps}")
    return {name: shrink(model, own, own.first(sizes.get(name, own.units))) for name, own in parts.items()}


def _entries(keep: Tensor, per_unit: int) -> Tensor:
    """Indices of the entries of the units in `keep`, `per_unit` adjacent ones for each."""
    return (keep[:, None] * per_unit + torch.arange(per_unit, device=keep.device)).flatten()


def _features(producer: Producer, units: int, keep: Tensor) -> Tensor:
    """Indices of the output features that a producer keeps."""
    start, found = 0, []
    for block in producer.blocks:
        size = block.features if block.fixed else block.features * units
        own = torch.arange(size, device=keep.device) if block.fixed else _entries(keep, block.features)
        found.append(own + start)
        start += size
    return torch.cat(found)


def _select(module: nn.Module, name: str, index: Tensor, *, axis: int) -> None:
    """Keep the entries `index` of a parameter or buffer along an axis."""
    tensor = getattr(module, name)
    kept = tensor.detach().index_select(axis, index.to(tensor.device)).contiguous()
    if isinstance(tensor, nn.Parameter):
        kept = nn.Parameter(kept, requires_grad=tensor.requires_grad)
    elif name in dict(module.named_buffers(recurse=False)):
        # saved with the weights from now on: the code that makes it does not know which units are left
        module.register_buffer(name, kept)
    setattr(module, name, kept)


def _count(module: nn.Module, names: tuple[str, ...], value: int) -> None:
    """Update whichever of the attributes the module has."""
    for name in names:
        if hasattr(module, name):
            setattr(module, name, value)


def _follow(module: nn.Module, follower: Follower, keep: Tensor, device: torch.device) -> None:
    """Update one follower; what it is given comes on `device`."""
    if follower.axis is None:
        _set_number(module, follower.name, follower.per_unit * keep.numel() // follower.groups)
        return
    index = _entries(keep, follower.per_unit)
    if not follower.argument:
        _select(module, follower.name, index, axis=follower.axis)
        return
    buffer = KeptEntries.buffer(follower.name)
    if hasattr(module, buffer):
        _select(module, buffer, index, axis=0)
        return
    module.register_buffer(buffer, index.to(device))
    entries = KeptEntries(module, follower)
    module.register_forward_pre_hook(entries, with_kwargs=True)
    module.register_forward_hook(entries.restore, with_kwargs=True)


def _set_number(module: nn.Module, name: str, value: int) -> None:
    """Set an attribute; one of the config is set in a copy that is the module's own."""
    holder, _, field = name.rpartition(".")
    own = copy.copy(getattr(module, holder)) if holder else module
    setattr(own, field, value)
    if holder:
        setattr(module, holder, own)


def _empty(model: nn.Module, parts: Parts) -> None:
    """Take out every unit: the projection becomes its bias, and nothing is left of what fed it."""
    projection = model.get_submodule(parts.projection)
    constant = Constant(parts.width, projection.bias, like=projection.weight)  # pyright: ignore[reportArgumentType]
    _replace(model, parts.projection, constant)
    if not parts.branch:
        for producer in parts.producers:
            _replace(model, producer.path, Nothing())
        return
    inside = parts.projection.removeprefix(parts.branch + ".")
    holds = inside != parts.projection
    given = (parts, inside, constant) if holds else (parts,)
    _replace(model, parts.branch, Emptied.in_place_of(model.get_submodule(parts.branch), *given))


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    module.train(model.get_submodule(path).training)
    model.set_submodule(path, module)
    for own in (model.get_submodule(path.rsplit(".", i)[0]) for i in range(path.count(".") + 1)):
        if not hasattr(own, "_init_weights") and not vars(own)["_non_persistent_buffers_set"]:
            # transformers' mark: its code that initialises some classes reaches inside, for what is not there any more
            vars(own)["_is_hf_initialized"] = True
