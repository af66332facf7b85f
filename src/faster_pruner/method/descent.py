"""Descent: all matrices of one sublayer are fitted to its target, where least squares moves its projection alone.

With few units left the projection's inputs X no longer span what the target needs, whatever the projection does with
them. So the producers are fitted, too: Adam on ``|| X(W_p) W' + b - R ||^2`` with R = target - base, over minibatches
of the calibration rows for which the branch is run again by itself. Where that leaves them fitted worse than least
squares alone, all matrices are put back.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from faster_pruner.host.ranks import Ranks
from faster_pruner.host.spill import HiddenStates
from faster_pruner.linalg import RegressionMoments
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.method.statistics import tokens_of
from faster_pruner.model.lockstep import Lockstep, branch_path
from faster_pruner.model.passes import asking_as_before
from faster_pruner.model.spec import Sublayer, bias_of
from faster_pruner.options import Descent

# Minibatches that tell whether the descent made the fit better.
_JUDGES = 32
# A branch that is run again gives the same inputs of its projection up to this share of them.
_SAME = 2e-2


@dataclass(frozen=True)
class Piece:
    """A minibatch.

    Attributes:
        batch: index of its batch.
        places: of its rows there [B']; None for all.
        tokens: [B', S] bool, those of them that are fitted.
        targets: where these lie among all tokens of the batch that are fitted.
    """

    batch: int
    places: Tensor | None
    tokens: Tensor
    targets: slice


@dataclass(frozen=True)
class Turn:
    """A minibatch of any process.

    Attributes:
        rank: of the process that has it.
        piece: it, where that is this one.
    """

    rank: int
    piece: Piece | None


@dataclass
class Fitting:
    """What one sublayer is fitted to; `keep` is to be told of every batch before the descent.

    Attributes:
        run: forwards that wait at its projection, with branches.
        model: that is fitted.
        sublayer: of it.
        tokens: per batch [B, S] bool, those that it is fitted on.
        r: per batch [T, d], what the projection should put out for them.
        data: the calibration set, of whose batches all these are this process's own.
        first: [B, S, n], the projection's input of the first batch; None before it has been seen.
    """

    run: Lockstep
    model: nn.Module
    sublayer: Sublayer
    tokens: Sequence[Tensor]
    r: HiddenStates
    data: CalibrationSet
    first: Tensor | None = None

    def keep(self, x: Tensor, r: Tensor) -> None:
        """The next batch: the projection's input [B, S, n] and what it should put out [T, d]."""
        if self.first is None:
            # the model may go on in the same memory
            self.first = x.clone()
        self.r.append(r)

    @contextmanager
    def output(self, piece: Piece) -> Generator[tuple[Tensor, Tensor]]:
        """What the projection puts out [T', d] for a minibatch, and what it should: inside, it can be differentiated.

        A backward needs what the branch was called with, which may go to files afterwards.
        """
        with self.run.awake(piece.batch):
            x = tokens_of(self.run.again(piece.batch, self.sublayer, piece.places), piece.tokens).float()
            yield projected(self.model, self.sublayer, x), self.r[piece.batch][piece.targets]

    def moments(self) -> RegressionMoments:
        """Of the least squares with today's producers."""
        ranks = self.data.ranks
        found = RegressionMoments(self.sublayer.columns, self.sublayer.width, self.tokens[0].device)
        for index, chosen in ranks.after_first(enumerate(self.tokens), lambda: found.share_centre(ranks)):
            with self.run.awake(index):
                found.add(tokens_of(self.run.again(index, self.sublayer), chosen), self.r[index])
        found.add_up(ranks)
        return found


def projected(model: nn.Module, sublayer: Sublayer, x: Tensor) -> Tensor:
    """[T, d]: what the projection of a sublayer makes of x [T, n], wherever its weights are."""
    weight, bias = sublayer.weight(model), bias_of(sublayer.projection(model))
    return functional.linear(x, weight.to(x.device), None if bias is None else bias.to(x.device))


def descend(fitting: Fitting, options: Descent, *, seed: int) -> str:
    """Fit all matrices of a sublayer, in place.

    Args:
        fitting: after its least-squares fit.
        options: how long, how fast.
        seed: of the order of the minibatches.

    Returns:
        Why nothing was changed; empty when it was.
    """
    whole, reason = fitting.data.ranks.lead(lambda: _way(fitting, options.tokens_per_step))
    if reason:
        return f"no descent: the branch does not run by itself ({reason})"
    pieces = _pieces(fitting, options.tokens_per_step, whole=whole)
    with _trained(fitting) as modules:
        parameters = _parameters(modules)
        before = [parameter.detach().clone() for parameter in parameters]
        judges = pieces[:: -(-len(pieces) // _JUDGES)]
        error = _error(fitting, judges)
        _train(fitting, modules, pieces, options, seed)
        with torch.no_grad():
            fitting.data.ranks.broadcast_(*parameters)
        found = _error(fitting, judges)
        if found < error:
            return ""
        with torch.no_grad():
            for parameter, own in zip(parameters, before, strict=True):
                parameter.copy_(own)
        return f"no descent: it ended with an error of {found:.3f}, from {error:.3f}"


def _way(fitting: Fitting, tokens: int) -> tuple[bool, str]:
    """Whether minibatches have to be whole batches; and why there can be none at all, empty when there can."""
    try:
        first = next(_split(0, fitting.tokens[0], tokens))
        if first.tokens.shape == fitting.tokens[0].shape or not _same(fitting, first.places):
            if not _same(fitting, None):
                raise ValueError("it makes something else then")
            return True, ""
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        return True, (str(error).splitlines() or [""])[0] or type(error).__name__
    return False, ""


def _pieces(fitting: Fitting, tokens: int, *, whole: bool) -> list[Turn]:
    """Minibatches of about so many padded tokens, of all processes in the order of their batches.

    Args:
        fitting: of this process.
        tokens: padded ones of a minibatch.
        whole: take whole batches, of a branch that does not run on some of the rows.
    """
    if whole:
        found = [Piece(index, None, chosen, slice(None)) for index, chosen in enumerate(fitting.tokens)]
    else:
        found = [piece for index, chosen in enumerate(fitting.tokens) for piece in _split(index, chosen, tokens)]
    own = [piece for piece in found if bool(piece.tokens.any())]
    data = fitting.data
    told = data.ranks.gather([data.places[piece.batch] for piece in own])
    order = sorted((place, rank, i) for rank, places in enumerate(told) for i, place in enumerate(places))
    return [Turn(rank, own[i] if rank == data.ranks.rank else None) for _, rank, i in order]


def _split(index: int, chosen: Tensor, tokens: int) -> Iterator[Piece]:
    """A batch of which [B, S] tokens are fitted, in minibatches of about so many padded ones."""
    start = 0
    for places in torch.arange(len(chosen), device=chosen.device).split(max(1, tokens // chosen.shape[1])):
        own = chosen[places]
        stop = start + int(own.sum())
        yield Piece(index, places, own, slice(start, stop))
        start = stop


def _same(fitting: Fitting, places: Tensor | None) -> bool:
    """Whether the branch, run again on some rows of the first batch, makes what it made of them."""
    try:
        with fitting.run.awake(0), torch.no_grad():
            again = fitting.run.again(0, fitting.sublayer, places)
    except (LookupError, RuntimeError, TypeError, ValueError):
        if places is None:
            raise
        return False
    chosen, wanted = fitting.tokens[0], fitting.first
    assert wanted is not None
    if places is not None:
        chosen, wanted = chosen[places], wanted[places]
    found, wanted = tokens_of(again, chosen).float(), tokens_of(wanted, chosen).float()
    return found.shape == wanted.shape and bool((found - wanted).norm() <= _SAME * wanted.norm())


@contextmanager
def _trained(fitting: Fitting) -> Generator[list[nn.Module]]:
    """The modules that are fitted, producers and projection, whose parameters alone ask for gradients inside."""
    branch = fitting.model.get_submodule(branch_path(fitting.sublayer))
    paths = [*(producer.path for producer in fitting.sublayer.parts.producers), fitting.sublayer.parts.projection]
    modules = [fitting.model.get_submodule(path) for path in paths]
    with asking_as_before(branch):
        branch.requires_grad_(False)
        for parameter in _parameters(modules):
            parameter.requires_grad_(True)
        try:
            yield modules
        finally:
            for parameter in _parameters(modules):
                parameter.grad = None


def _parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Of the modules themselves."""
    return [parameter for module in modules for parameter in module.parameters(recurse=False)]


@torch.no_grad()
def _error(fitting: Fitting, turns: Sequence[Turn]) -> float:
    """Relative root mean square error on some minibatches."""
    wrong, whole = 0.0, 0.0
    for turn in turns:
        if turn.piece is not None:
            with fitting.output(turn.piece) as (y, r):
                wrong, whole = wrong + float((y - r).square().sum()), whole + float(r.square().sum())
    sums = torch.tensor([wrong, whole], dtype=torch.float64)
    fitting.data.ranks.sum_(sums)
    wrong, whole = sums.tolist()
    return (wrong / max(whole, 1e-30)) ** 0.5


def _train(fitting: Fitting, modules: Sequence[nn.Module], turns: Sequence[Turn], options: Descent, seed: int) -> None:
    """Adam, with a rate that falls to zero."""
    groups = [
        {"params": list(module.parameters(recurse=False)), "lr": options.rate * _size(module)} for module in modules
    ]
    optimizer = torch.optim.Adam(groups, fused=_parameters(modules)[0].device.type in ("cpu", "cuda") or None)
    steps = options.epochs * len(turns)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    # so that gradients are of one size, whatever the model's scale
    scale = _scale(fitting)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(options.epochs):
            for place in torch.randperm(len(turns), generator=generator).tolist():
                optimizer.zero_grad()
                turn = turns[place]
                if turn.piece is not None:
                    with fitting.output(turn.piece) as (y, r):
                        loss = (y - r).square().mean() / max(scale, 1e-30)
                        loss.backward()
                _share_gradients(fitting.data.ranks, _parameters(modules), turn.rank)
                optimizer.step()
                schedule.step()


def _share_gradients(ranks: Ranks, parameters: Sequence[nn.Parameter], source: int) -> None:
    """Every process gets the gradients of the one whose turn it is."""
    if ranks.alone:
        return
    found = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    flat = torch.cat([gradient.flatten() for gradient in found])
    ranks.broadcast_(flat, source=source)
    for each, part in zip(parameters, flat.split([each.numel() for each in parameters]), strict=True):
        each.grad = part.view_as(each)


def _scale(fitting: Fitting) -> float:
    """Mean over the batches of the mean square of what the projection should put out."""
    squares = [float(r.float().square().mean()) for r in fitting.r if r.numel()]
    sums = torch.tensor([sum(squares), len(fitting.r)], dtype=torch.float64)
    fitting.data.ranks.sum_(sums)
    return float(sums[0] / sums[1])


def _size(module: nn.Module) -> float:
    """The root mean square of a module's matrix: what its steps are measured by."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return float(weight.detach().float().square().mean().sqrt())
