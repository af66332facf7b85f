"""What a layer consists of: projections, their units, and the producers with what each of their features is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from faster_pruner.model.detection.probing import Influence, inputs_of, outputs_of
from faster_pruner.model.detection.watching import Trace
from faster_pruner.model.spec import Features

# What the output features of a producer may be, the simplest first.
_LAYOUTS: tuple[tuple[Features, ...], ...] = (
    ("equal",),
    ("equal", "equal"),
    ("equal", "equal", "equal"),
    ("columns", "equal", "equal"),
    ("columns", "fixed", "fixed"),
    ("columns", "fixed"),
    ("fixed", "columns"),
    ("equal", "equal", "equal", "equal"),
    ("columns", "columns", "equal", "equal"),
)
# Stands for a feature that belongs to no unit.
_SHARED = -1


@dataclass(frozen=True)
class Branch:
    """A projection with its producers.

    Attributes:
        projection: path from the model's root.
        units: U.
        size: g, columns per unit.
        producers: path -> what its output features are, in the order in which they are called.
        mixes: whether tokens have a part in other tokens' columns.
        groups: adjacent runs of units that must stay equally large.
    """

    projection: str
    units: int
    size: int
    producers: dict[str, tuple[Features, ...]]
    mixes: bool
    groups: int = 1

    @property
    def shared(self) -> bool:
        """Whether a producer has features that belong to no unit."""
        return any("fixed" in blocks for blocks in self.producers.values())


def find_branches(
    model: nn.Module, trace: Trace, matrices: list[str], found: Mapping[tuple[str, str], Influence]
) -> list[Branch]:
    """All projections of a layer whose columns fall into units, in the order in which they are called."""
    order = sorted((path for path in matrices if trace.one(path)), key=lambda path: trace.by_path[path][-1].began)
    branches = []
    for projection in order:
        pairs = {
            path: found[path, projection] for path in matrices if (path, projection) in found and path != projection
        }
        branch = _branch(model, trace, projection, pairs)
        if branch is not None:
            branches.append(branch)
    return branches


def by_query_head(model: nn.Module, branch: Branch) -> Branch | None:
    """The same projection with query heads for units, of each group the same number; None where units are no groups.

    Queries are as many features as the projection has columns, keys and values fewer: these stay as they are, and with
    them the layout of the cache.
    """
    shares: dict[str, int] = {}
    for path, layout in branch.producers.items():
        like_columns = layout.count("columns")
        others = max(1, len(layout) - like_columns)
        shares[path] = (outputs_of(model.get_submodule(path)) - like_columns * branch.units * branch.size) // others
    whole = branch.units * branch.size
    few = [share // branch.units for share in shares.values() if 0 < share < whole]
    size = max(few, default=0)
    if not branch.mixes or branch.shared or not size or branch.size % size:
        return None
    producers: dict[str, tuple[Features, ...]] = {
        path: tuple("fixed" if block == "equal" and shares[path] < whole else block for block in layout)
        for path, layout in branch.producers.items()
    }
    return replace(branch, units=whole // size, size=size, producers=producers, groups=branch.units)


def why_whole(branch: Branch, found: Mapping[tuple[str, str], Influence], reason: str) -> str:
    """Why a branch is left whole, in words: what has a part in all of its units at once, or else `reason`."""
    folder = _folder(branch)
    beside = [
        producer.removeprefix(folder)
        for (producer, projection), influence in found.items()
        if projection == branch.projection and producer.startswith(folder) and _everywhere(influence)
    ]
    if not beside:
        return reason
    have = "has" if len(beside) == 1 else "have"
    return f"{' and '.join(beside)} {have} a part in all of its columns at once, so that no unit of it can go alone"


def why_unused(path: str, branches: Sequence[Branch], found: Mapping[tuple[str, str], Influence]) -> str:
    """Why a matrix that is part of no branch that can be cut is left whole, in words."""
    owner = next((branch.projection for branch in branches if path in branch.producers), None)
    if owner is not None:
        return f"it computes columns of {owner}, which is left whole"
    reached = [i for (producer, to), i in found.items() if producer == path and to != path and bool(i.columns.any())]
    if not reached:
        return "no other matrix of its layer reads what it computes"
    if all(map(_everywhere, reached)):
        return "each of its features has a part in everything that comes after it"
    return "its features belong to no unit that a projection reads"


def _everywhere(influence: Influence) -> bool:
    """Whether each feature that reaches a projection reaches all of its columns."""
    reaching = influence.columns.any(dim=1)
    return bool(reaching.any()) and bool(influence.columns[reaching].all())


def _folder(branch: Branch) -> str:
    """Path of the smallest module that holds the projection and its producers, with a trailing dot."""
    paths = [path.split(".")[:-1] for path in (branch.projection, *branch.producers)]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return "".join(names[0] + "." for names in shared)


def _branch(model: nn.Module, trace: Trace, projection: str, pairs: Mapping[str, Influence]) -> Branch | None:
    """One projection; None when nothing computes its columns unit by unit."""
    columns = inputs_of(model.get_submodule(projection))
    for contiguous in (False, True):
        edges = [i.columns[_local(i.columns, contiguous=contiguous)] for i in pairs.values() if i.columns.numel()]
        size = _unit_size(torch.cat(edges), columns) if edges else columns
        if size < columns:
            break
    units = columns // size
    if units < 2:
        return None
    producers: dict[str, tuple[Features, ...]] = {}
    mixes = False
    for path in sorted(pairs, key=lambda p: trace.by_path[p][0].began if trace.one(p) else 0):
        layout = _layout(pairs[path], outputs_of(model.get_submodule(path)), columns, units, size)
        if layout is not None:
            producers[path] = layout
            mixes = mixes or pairs[path].mixes
    return Branch(projection, units, size, producers, mixes) if producers else None


def _local(columns: Tensor, *, contiguous: bool) -> Tensor:
    """[E]: which features reach some columns and not all, and, if asked, adjacent ones only."""
    count = columns.sum(dim=1)
    local = (count > 0) & (count < columns.shape[1])
    if contiguous:
        places = torch.arange(columns.shape[1])
        first = torch.where(columns, places, columns.shape[1]).amin(dim=1)
        last = torch.where(columns, places, -1).amax(dim=1)
        local &= last - first + 1 == count
    return local


def _unit_size(edges: Tensor, columns: int) -> int:
    """The fewest adjacent columns such that no feature reaches beyond those of one unit."""
    if not len(edges):
        return columns
    places = torch.arange(columns)
    first = torch.where(edges, places, columns).amin(dim=1)
    last = torch.where(edges, places, -1).amax(dim=1)
    divisors = [g for g in range(1, columns) if columns % g == 0]
    return next((g for g in divisors if torch.equal(first // g, last // g)), columns)


def _layout(influence: Influence, outputs: int, columns: int, units: int, size: int) -> tuple[Features, ...] | None:
    """What the output features of a producer are; None when no layout says what they do, or they belong to no unit."""
    reached = influence.columns.unflatten(1, (units, size)).any(dim=2)
    count = reached.sum(dim=1)
    if bool((count == 0).any()) or not bool((count == 1).any()):
        return None
    seen = torch.where(count == 1, reached.int().argmax(dim=1), _SHARED).tolist()
    for layout in _LAYOUTS:
        expected = _expected(layout, outputs, columns, units)
        if expected is not None and [int(expected[f]) for f in influence.features] == seen:
            return layout
    return None


def _expected(layout: tuple[Features, ...], outputs: int, columns: int, units: int) -> Tensor | None:
    """[outputs]: the unit of every feature under a layout; None when it does not fit."""
    like_columns = layout.count("columns")
    others = len(layout) - like_columns
    rest = outputs - like_columns * columns
    if rest < 0 or (rest > 0) != (others > 0) or (others and rest % others):
        return None
    found = []
    for block in layout:
        size = columns if block == "columns" else rest // others
        if block != "fixed" and size % units:
            return None
        own = torch.full((size,), _SHARED) if block == "fixed" else torch.arange(size) // (size // units)
        found.append(own)
    return torch.cat(found)
