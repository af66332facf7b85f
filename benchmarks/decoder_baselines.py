"""Other ways to make a decoder smaller, without retraining: for units, tokens and budgets as `decoders.py` gives them.

Units are those of the family: a key/value group with its query heads, a neuron with its rows of gate and up. X are the
inputs of an output projection W [d, n] (of attention, of the feed-forward layer) in the dense model, unless said
otherwise. Every model costs at most `most`; what a rule's own threshold would leave of it goes to the next units of the
same ranking, where they fit, so that all methods spend alike (`ranked`, `same_share`).

* `magnitude`: the L2 norm of all weights of a unit, its columns of W and its rows of the producers. The same share of
  every sublayer is removed, or units are ranked over all layers (`ranked_magnitude`: Kwon et al. 2022, algorithm 1).
* `wanda_sp`: Wanda-sp of An et al. 2024 ("Fluctuation-based Adaptive Structured Pruning for Large Language Models",
  AAAI, arXiv 2312.11983), from the score of Sun et al. 2024 (Wanda, arXiv 2306.11695, eq. 1): a column's is the mean of
  ``|W| ||X||_2`` over its rows, a unit's the sum over its columns; the same share of every sublayer is removed. One
  sublayer after the other: X is what the model pruned so far gives. (Their code scores both sublayers of a layer before
  it prunes either.) Nothing is standardised, neither in the paper nor in its code.
* `flap`: FLAP, of the same paper. A column's score is the sample variance of X over the tokens times the squared norm
  of the column of W ("WIFV"); of attention it is squared, which only the code does. Scores are standardised over the
  columns of each sublayer, averaged over those of a unit, and all units of all sublayers are ranked together, weighed
  by what they cost ("AL-AM"). What is removed goes on with its mean, ``b' = b + W_removed mean(X_removed)``; a
  projection without a bias gets one. (Their code updates its variance sample by sample, with the newest mean.)
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.costs.cost import Macs, total
from faster_pruner.data.batches import Batch
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.model.lockstep import lockstep
from faster_pruner.model.network import Network
from faster_pruner.model.passes import called, first_input, inference
from faster_pruner.model.precision import forward_in
from faster_pruner.model.spec import Sublayer, bias_of, matrix_of
from faster_pruner.selection.search import Candidates, Selection, search_masks

# How far, relatively, sums of costs may be off by rounding.
SLACK = 1e-9

# The most MACs that may be left -> a smaller copy.
Cutter = Callable[[float], Network]


class TokenSums:
    """Sums over tokens x [T, n] of x and x^2, in float64."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.count = 0
        self.total = torch.zeros(columns, dtype=torch.float64, device=device)
        self.square = torch.zeros_like(self.total)

    def add(self, x: Tensor) -> None:
        """Add tokens."""
        self.count += x.shape[0]
        self.total += x.sum(dim=0, dtype=torch.float64)
        self.square += x.double().square().sum(dim=0)

    @property
    def mean(self) -> Tensor:
        """[n]."""
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """[n]: sample variance."""
        return (self.square - self.count * self.mean.square()).clamp(min=0) / max(1, self.count - 1)

    @property
    def norm(self) -> Tensor:
        """[n]: Euclidean norm over all tokens."""
        return self.square.sqrt()


def _real(x: Tensor, batch: Batch) -> Tensor:
    """[T, n]: the real tokens of x [B, S, n]."""
    return x.flatten(0, 1) if batch.mask is None else x[batch.mask.bool()]


def sums_of_inputs(network: Network, data: CalibrationSet) -> dict[str, TokenSums]:
    """By sublayer: sums over what its projection is given, in one forward over all batches."""
    device = data.batches[0].rows.device
    found = {s.name: TokenSums(s.columns, device) for s in network.sublayers}
    for_batch: list[Batch] = []

    def adding(sums: TokenSums) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            sums.add(_real(first_input(args, kwargs), for_batch[-1]))

        return add

    with ExitStack() as stack, inference(network.model):
        for s in network.sublayers:
            hook = s.projection(network.model).register_forward_pre_hook(adding(found[s.name]), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in data.batches:
            for_batch[:] = [batch]
            with forward_in(data.setting.precision, device):
                called(network.model, batch.inputs)
    return found


def by_unit(columns: Tensor, s: Sublayer) -> Tensor:
    """[U, g]: values of columns [n]."""
    return columns.view(s.units, s.unit_size)


def magnitudes(model: nn.Module, s: Sublayer) -> Tensor:
    """[U]: L2 norm of all weights of each unit."""
    found = by_unit(s.weight(model).detach().double().square().sum(dim=0), s).sum(dim=1)
    for producer in s.parts.producers:
        weight = matrix_of(model.get_submodule(producer.path), transposed=producer.transposed, width=producer.inputs)
        sizes = [block.features if block.fixed else block.features * s.units for block in producer.blocks]
        for block, rows in zip(producer.blocks, weight.detach().double().split(sizes), strict=True):
            if not block.fixed:
                found = found + rows.square().view(s.units, -1).sum(dim=1)
    return found.sqrt()


def same_share(sublayers: Sequence[Sublayer], cost: Macs, most: float) -> dict[str, int]:
    """Units that each sublayer keeps where all lose the budget's share.

    Groups of heads lose it rounded down to whole ones; neurons then lose the least share, the same in every layer, that
    meets `most`. Where they cannot, groups lose one more.
    """
    share = Fraction(1 - most / total(cost, sublayers))
    heads = [s for s in sublayers if s.unit_size > 1]
    neurons = [s for s in sublayers if s.unit_size == 1]
    # shares at which some sublayer loses one neuron more
    steps = sorted({Fraction(k, n) for n in {s.units for s in neurons} for k in range(n + 1)} | {Fraction(1)})

    def left(gone: int, of_neurons: Fraction) -> dict[str, int]:
        kept = {s.name: max(0, s.units - int(share * s.units) - gone) for s in heads}
        return kept | {s.name: s.units - int(of_neurons * s.units) for s in neurons}

    def fits(gone: int, of_neurons: Fraction) -> bool:
        units = left(gone, of_neurons)
        spent = total(cost, [s.resized(replace(s.parts, units=units[s.name])) for s in sublayers])
        return spent <= most * (1 + SLACK)

    gone = 0
    while not fits(gone, steps[-1]):
        gone += 1
    return left(gone, steps[bisect_left(steps, True, key=functools.partial(fits, gone))])


def best(scores: Tensor, keep: int) -> Tensor:
    """Sorted indices of the `keep` highest scores; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:keep].sort().values.cpu()


def ranked(scores: Mapping[str, Tensor], sublayers: Sequence[Sublayer], cost: Macs, most: float) -> Selection:
    """Units of all sublayers in one ranking, the best first, as long as they fit."""
    price = {s.name: float(cost.of(s, torch.tensor([1]))[0]) for s in sublayers}
    entries = [(float(x), s.name, unit) for s in sublayers for unit, x in enumerate(scores[s.name].tolist())]
    entries.sort(key=lambda entry: -entry[0])
    keep: dict[str, list[int]] = {s.name: [] for s in sublayers}
    left = most * (1 + SLACK)
    for _, name, unit in entries:
        if price[name] <= left:
            keep[name].append(unit)
            left -= price[name]
    return {name: torch.tensor(sorted(units), dtype=torch.long) for name, units in keep.items()}


def magnitude(dense: Network, data: CalibrationSet) -> Cutter:
    """The same share of every sublayer, the units with the smallest norms."""
    scores = {s.name: magnitudes(dense.model, s) for s in dense.sublayers}

    def cut(most: float) -> Network:
        left = same_share(dense.sublayers, Macs(data.lengths), most)
        return dense.copied().shrunk({name: best(own, left[name]) for name, own in scores.items()})

    return cut


def ranked_magnitude(dense: Network, data: CalibrationSet) -> Cutter:
    """Units with the smallest norms, ranked over all layers, each kind by itself; the best mix of kinds wins."""
    cost = Macs(data.lengths)
    candidates = {
        s.name: Candidates(
            kind=" ".join(s.alike),
            importance=magnitudes(dense.model, s).square().cpu(),
            unit_cost=float(cost.of(s, torch.tensor([1]))[0]),
        )
        for s in dense.sublayers
    }
    return lambda most: dense.copied().shrunk(search_masks(candidates, most))


def wanda_sp(dense: Network, data: CalibrationSet) -> Cutter:
    """Wanda's score, layer by layer, on what the pruned model makes of the tokens."""
    return functools.partial(_cut_by_wanda, dense, data)


def _cut_by_wanda(dense: Network, data: CalibrationSet, most: float) -> Network:
    """Prune one sublayer after the other."""
    left = same_share(dense.sublayers, Macs(data.lengths), most)
    pruned, keep = dense.copied(), dict[str, Tensor]()
    with lockstep(pruned.model, pruned.sublayers, data.batches, setting=data.setting) as run:
        for s in pruned.sublayers:
            sums = TokenSums(s.columns, data.batches[0].rows.device)
            for arrival in run.arrivals(s):
                sums.add(_real(arrival.x, data.batches[arrival.batch]))
            weight = s.weight(pruned.model).detach()
            scores = by_unit(wanda_scores(weight, sums), s).sum(dim=1)
            keep[s.name] = best(scores, left[s.name])
            # columns of zeros are what removed ones are to the rest of the forward
            gone = torch.ones(s.units, dtype=torch.bool).index_fill(0, keep[s.name], False)
            weight[:, gone.repeat_interleave(s.unit_size).to(weight.device)] = 0
    return pruned.shrunk(keep)


def wanda_scores(weight: Tensor, sums: TokenSums) -> Tensor:
    """[n]: mean of ``|W| ||X||`` over the rows of W [d, n]."""
    return weight.double().abs().mean(dim=0) * sums.norm


def flap(dense: Network, data: CalibrationSet) -> Cutter:
    """FLAP: fluctuation, one adaptive ranking, and the means of what is removed in the biases."""
    sums = sums_of_inputs(dense, data)
    scores = {s.name: flap_scores(dense.model, s, sums[s.name]) for s in dense.sublayers}

    def cut(most: float) -> Network:
        keep = ranked(scores, dense.sublayers, Macs(data.lengths), most)
        pruned = dense.copied()
        for s in pruned.sublayers:
            gone = torch.ones(s.units, dtype=torch.bool).index_fill(0, keep[s.name], False)
            if bool(gone.any()):
                mean = sums[s.name].mean
                _add_to_bias(pruned.model, s, mean * gone.repeat_interleave(s.unit_size).to(mean.device))
        return pruned.shrunk(keep)

    return cut


def flap_scores(model: nn.Module, s: Sublayer, sums: TokenSums) -> Tensor:
    """[U]: the standardised fluctuation of each unit."""
    columns = sums.variance * s.weight(model).detach().double().square().sum(dim=0)
    if s.spec.mixes_tokens:
        columns = columns.square()
    standard = (columns - columns.mean()) / columns.std()
    return by_unit(standard, s).mean(dim=1)


@torch.no_grad()
def _add_to_bias(model: nn.Module, s: Sublayer, x: Tensor) -> None:
    """Add W x, for x [n], to the bias; one is made where there is none."""
    projection: Any = s.projection(model)
    weight = s.weight(model).detach()
    added = (weight.double() @ x).to(weight.dtype)
    own = bias_of(projection)
    if own is None:
        projection.bias = nn.Parameter(added, requires_grad=weight.requires_grad)
    else:
        own.add_(added)


# By name: a dense network and its calibration set -> what cuts smaller copies of it.
BASELINES: dict[str, Callable[[Network, CalibrationSet], Cutter]] = {
    "FLAP": flap,
    "Wanda-sp": wanda_sp,
    "magnitude": magnitude,
    "magnitude, ranked over layers": ranked_magnitude,
}
