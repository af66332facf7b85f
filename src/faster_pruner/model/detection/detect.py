"""Describes a model that no row of the table describes, as a family like any other.

What a layer does is found by running it: which features of which matrix have a part in which columns of which other
(`probing`, `branches`), and what is added to what (`joining`). Names decide nothing but how things are called. Whatever
is found has been tried on one layer; `proof` tries it on the whole model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.detection.branches import Branch, by_query_head, find_branches, why_unused, why_whole
from faster_pruner.model.detection.following import completed
from faster_pruner.model.detection.joining import Joined, find_joins
from faster_pruner.model.detection.naming import config_fields, has_groups, mask_of, unit_size_of, with_stock
from faster_pruner.model.detection.place import Place
from faster_pruner.model.detection.probing import influences, is_matrix, is_transposed, outputs_of, stacked
from faster_pruner.model.detection.stacks import config_of, find_layers, stack_names
from faster_pruner.model.detection.watching import Inputs, Trace, in_the_open, rows_of, watch
from faster_pruner.model.spec import Family, ProducerSpec, Source, Stack, SublayerSpec
from faster_pruner.options import AttentionUnit


@dataclass(frozen=True)
class Detected:
    """A family as found.

    Attributes:
        family: what can be pruned.
        left: what is left whole, by path, and why.
        trace: the forward that it was found on.
    """

    family: Family
    left: dict[str, str]
    trace: Trace


def detect(model: nn.Module, inputs: Inputs, attention_unit: AttentionUnit = "group") -> Detected:
    """Describe a model.

    Args:
        model: in eval mode; put back as it was.
        inputs: a small batch, at least two tokens a row, the first row without padding.
        attention_unit: what is to be a unit where query heads share keys and values.

    Raises:
        UnsupportedModelError: no list of layers, or nothing in one that falls into units; with the reasons.
    """
    left: dict[str, str] = {}
    trace = watch(model, inputs)
    layers = find_layers(model, trace, left)
    stacks: list[Stack] = []
    for own, name in zip(layers, stack_names(layers), strict=True):
        config = config_of(model, own.layer(0))
        mask = mask_of(own, trace, inputs)
        stack = Stack(layers=own.path, sublayers=(), name=name, config=config, mask=mask, calls=own.calls)
        place = functools.partial(Place, model, in_the_open(model), inputs, trace, own, stack)
        every = [place(indices, attention_unit) for indices in own.groups]
        specs = list(_sublayers(every, left))
        if specs:
            memory = stacks[-1].name if stacks and any(_remembers(spec) for spec in specs) else ""
            stacks.append(replace(stack, sublayers=tuple(specs), memory=memory))
    if not stacks:
        reasons = "; ".join(f"{path}: {why}" for path, why in left.items()) or "no list of layers was found"
        raise UnsupportedModelError(f"{type(model).__name__} has no sublayer that can be described: {reasons}")
    return Detected(Family(stacks=tuple(stacks)), left, trace)


def _remembers(spec: SublayerSpec) -> bool:
    """Whether a sublayer reads what another stack puts out."""
    return any(producer.source == "memory" for producer in spec.producers)


def _sublayers(places: list[Place], left: dict[str, str]) -> Iterator[SublayerSpec]:
    """The kinds of sublayers of one stack, those of layers that are built alike described once."""
    found: dict[SublayerSpec, list[int]] = {}
    layers, trace = places[0].layers, places[0].trace
    for place in places:
        whole: dict[str, str] = {}
        for spec in _layer(place, whole):
            found.setdefault(spec, []).extend(place.indices)
        every = [layers.layer(i) for i in place.indices]
        left |= {layer + path.removeprefix(place.layer): why for layer in every for path, why in whole.items()}
    call = trace.one(layers.layer(0))
    for spec, indices in found.items():
        # how many tokens a cache holds is read off its first layer
        measures = call is not None and call.cached and spec.mixes_tokens and 0 in indices and not spec.least
        if measures:
            yield replace(spec, least=spec.groups, layers=(0,))
            indices = [index for index in indices if index]
        if indices:
            everywhere = len(indices) == len(layers.names)
            yield spec if everywhere else replace(spec, layers=tuple(sorted(indices)))


def _layer(place: Place, left: dict[str, str]) -> list[SublayerSpec]:
    """The sublayers of one layer, in the order in which it runs them."""
    inside = place.model.get_submodule(place.layer)
    matrices = [f"{place.layer}.{name}" for name, module in inside.named_modules() if name and is_matrix(module)]
    matrices = [path for path in matrices if _multiplies(place, path)]
    pairs = influences(place.open, place.inputs, place.layer, matrices)
    branches = find_branches(place.model, place.trace, matrices, pairs)
    joins = find_joins(place.trace, place.layer, [branch.projection for branch in branches])
    specs: list[SublayerSpec] = []
    used: set[str] = set()
    for branch in _by_rank(branches, joins):
        own = {branch.projection, *branch.producers}
        if own & used:
            continue
        if _sees_some(place, branch.projection):
            left[branch.projection] = "it is given some tokens only: an expert"
            continue
        joined = joins.get(branch.projection, Joined(stream="", join="normed"))
        heads = by_query_head(place.model, branch)
        spec, reason = None, ""
        if heads is not None and place.attention_unit == "head":
            spec, _ = completed(place, heads, _plain(place, heads, joined, specs))
        if spec is None:
            spec, reason = completed(place, branch, _plain(place, branch, joined, specs))
        if spec is None:
            left[branch.projection] = why_whole(branch, pairs, reason)
            continue
        used |= own | {f"{place.layer}.{follower.module}" for follower in spec.followers if follower.axis is not None}
        specs.append(with_stock(place.model, place.stack, spec, place.layer, (heads or branch).size))
    for path in matrices:
        if path not in used and path not in left:
            left[path] = why_unused(path, branches, pairs)
    left |= {path: why for path, why in _other_weights(place).items() if path not in used}
    return sorted(specs, key=lambda s: _began(place, s))


def _other_weights(place: Place) -> dict[str, str]:
    """Modules of a layer with weights that are no plain matrix, by path, and what they are."""
    inside = place.model.get_submodule(place.layer)
    experts = dict(stacked(inside))
    found: dict[str, str] = {}
    for name, module in inside.named_modules():
        path = f"{place.layer}.{name}".removesuffix(".")
        largest = max((parameter.ndim for parameter in module.parameters(recurse=False)), default=0)
        if name in experts:
            found[path] = f"one tensor holds {experts[name]} matrices, one for each expert or head"
        elif largest > 1 and not is_matrix(module) and not isinstance(module, nn.Embedding):
            convolves = "Conv" in type(module).__name__ or hasattr(module, "kernel_size")
            found[path] = "it is a convolution" if convolves else "its weights are no plain matrix"
    return found


def _sees_some(place: Place, path: str) -> bool:
    """Whether a module is given only some of the tokens, so that there may be none of them in another batch."""
    own, layer = place.trace.one(path), place.trace.one(place.layer)
    if own is None or layer is None or own.source is None or layer.source is None:
        return True
    by_row = own.source.ndim > 2 and own.source.shape[0] == rows_of(place.inputs)
    width = outputs_of(place.model.get_submodule(path))
    return not by_row and own.source[..., 0].numel() < layer.source.numel() // width


def _multiplies(place: Place, path: str) -> bool:
    """Whether a module runs, and what it puts out is what its matrix makes of its input."""
    call = place.trace.one(path)
    outputs = outputs_of(place.model.get_submodule(path))
    return call is not None and call.value is not None and not call.returns and call.value.shape[-1] == outputs


def _began(place: Place, spec: SublayerSpec) -> int:
    """When a projection is called."""
    call = place.trace.one(f"{place.layer}.{spec.projection}")
    return 0 if call is None else call.began


def _by_rank(branches: list[Branch], joins: dict[str, Joined]) -> list[Branch]:
    """Branches that join the stream first, in the order of their calls."""
    return sorted(branches, key=lambda branch: branch.projection not in joins)


def _plain(place: Place, branch: Branch, joined: Joined, others: list[SublayerSpec]) -> SublayerSpec:
    """A sublayer without what has to be tried: followers, and what stands for it when it is empty."""
    sources: dict[str, Source] = {path: _source(place, branch, path) for path in branch.producers}
    ffn = branch.size == 1
    remembered = [source for source in sources.values() if source == "memory"]
    # a conformer's projection of relative positions is given as an argument, too
    crosses = 2 * len(remembered) > len(sources)
    kind = "convolution" if branch.mixes else "ffn"
    if not ffn:
        kind = "cross-attention" if crosses else "attention" if branch.mixes else "ffn"
    if not crosses:
        sources = {path: "several" if source == "memory" else source for path, source in sources.items()}
    taken = sum(spec.kind.split(":")[0] == kind for spec in others)
    model = place.model
    fields = config_fields(model, place.stack, branch, ffn=ffn)
    return SublayerSpec(
        kind=f"{kind}:{taken + 1}" if taken else kind,
        unit=_unit(place, branch, fields, ffn=ffn),
        projection=place.inside(branch.projection),
        producers=tuple(
            ProducerSpec(
                module=place.inside(path),
                blocks=blocks,
                source=sources[path],
                transposed=is_transposed(model.get_submodule(path)),
            )
            for path, blocks in branch.producers.items()
        ),
        stream=joined.stream,
        join=joined.join,
        norm=joined.norm,
        unit_size=unit_size_of(model, place.layer, branch),
        groups=branch.groups,
        mixes_tokens=branch.mixes,
        config=fields,
        rounded=ffn,
        buckets=8 if ffn else 4,
        transposed=is_transposed(model.get_submodule(branch.projection)),
    )


def _unit(place: Place, branch: Branch, fields: tuple[str, ...], *, ffn: bool) -> str:
    """What one unit is called: a group where it has several query heads."""
    if ffn:
        return "neuron" if branch.size == 1 else "unit"
    features = {outputs_of(place.model.get_submodule(path)) for path in branch.producers}
    shared = len(features) > 1 and not branch.shared
    return "group" if shared or has_groups(place.model, place.stack, branch, fields) else "head"


def _source(place: Place, branch: Branch, path: str) -> Source:
    """What a producer reads."""
    first, own = place.trace.one(next(iter(branch.producers))), place.trace.one(path)
    assert first is not None
    assert own is not None
    if place.trace.count(path) > place.layers.calls or own.source is None or first.source is None:
        return "several"
    if own.source.shape == first.source.shape and bool((own.source == first.source).all()):
        return "stream"
    layer = place.trace.one(place.layer)
    given = [] if layer is None else list(layer.given.values())[1:]
    same = any(each.shape == own.source.shape and bool((each == own.source).all()) for each in given)
    return "memory" if same else "several"
