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

from faster_pruner.host.spill import HiddenStates
from faster_pruner.linalg import RegressionMoments
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


@dataclass
class Fitting:
    """What one sublayer is fitted to; `keep` is to be told of every batch before the descent.

    Attributes:
        run: forwards that wait at its projection, with branches.
        model: that is fitted.
        sublayer: of it.
        tokens: per batch [B, S] bool, those that it is fitted on.
        r: per batch [T, d], what the projection should put out for them.
        first: [B, S, n], the projection's input of the first batch; None before it has been seen.
    """

    run: Lockstep
    model: nn.Module
    sublayer: Sublayer
    tokens: Sequence[Tensor]
    r: HiddenStates
    first: Tensor | None = None

    def keep(self, x: Tensor, r: Tensor) -> None:
        """The next batch: the projection's input [B, S, n] and what it should put out [T, d]."""
        if self.first is None:
            # the model may go on in the same memory
            self.first = x.clone()
        self.r.append(r)

    def output(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """What the projection puts out [T', d] for a minibatch, and what it should."""
        with self.run.awake(piece.batch):
            x = tokens_of(self.run.again(piece.batch, self.sublayer, piece.places), piece.tokens).float()
        y = functional.linear(x, self.sublayer.weight(self.model), bias_of(self.sublayer.projection(self.model)))
        return y, self.r[piece.batch][piece.targets]

    def moments(self) -> RegressionMoments:
        """Of the least squares with today's producers."""
        found = RegressionMoments(self.sublayer.columns, self.sublayer.width, self.tokens[0].device)
        for index, chosen in enumerate(self.tokens):
            with self.run.awake(index):
                found.add(tokens_of(self.run.again(index, self.sublayer), chosen), self.r[index])
        return found


def descend(fitting: Fitting, options: Descent, *, seed: int) -> str:
    """Fit all matrices of a sublayer, in place.

    Args:
        fitting: after its least-squares fit.
        options: how long, how fast.
        seed: of the order of the minibatches.

    Returns:
        Why nothing was changed; empty when it was.
    """
    try:
        pieces = _pieces(fitting, options.tokens_per_step)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"no descent: the branch does not run by itself ({(str(error).splitlines() or [''])[0]})"
    with _trained(fitting) as modules:
        parameters = _parameters(modules)
        before = [parameter.detach().clone() for parameter in parameters]
        judges = pieces[:: -(-len(pieces) // _JUDGES)]
        error = _error(fitting, judges)
        _train(fitting, modules, pieces, options, seed)
        found = _error(fitting, judges)
        if found < error:
            return ""
        with torch.no_grad():
            for parameter, own in zip(parameters, before, strict=True):
                parameter.copy_(own)
        return f"no descent: it ended with an error of {found:.3f}, from {error:.3f}"


def _pieces(fitting: Fitting, tokens: int) -> list[Piece]:
    """Minibatches of about so many padded tokens; whole batches of a branch that does not run on some of the rows.

    Raises:
        ValueError: run again, the branch makes something else.
    """
    found = [piece for index, chosen in enumerate(fitting.tokens) for piece in _split(index, chosen, tokens)]
    if found[0].tokens.shape == fitting.tokens[0].shape or not _same(fitting, found[0].places):
        if not _same(fitting, None):
            raise ValueError("it makes something else then")
        found = [Piece(index, None, chosen, slice(None)) for index, chosen in enumerate(fitting.tokens)]
    return [piece for piece in found if bool(piece.tokens.any())]


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
def _error(fitting: Fitting, pieces: Sequence[Piece]) -> float:
    """Relative root mean square error on some minibatches."""
    wrong, whole = 0.0, 0.0
    for piece in pieces:
        y, r = fitting.output(piece)
        wrong, whole = wrong + float((y - r).square().sum()), whole + float(r.square().sum())
    return (wrong / max(whole, 1e-30)) ** 0.5


def _train(
    fitting: Fitting, modules: Sequence[nn.Module], pieces: Sequence[Piece], options: Descent, seed: int
) -> None:
    """Adam, with a rate that falls to zero."""
    groups = [
        {"params": list(module.parameters(recurse=False)), "lr": options.rate * _size(module)} for module in modules
    ]
    optimizer = torch.optim.Adam(groups, fused=fitting.tokens[0].device.type in ("cpu", "cuda") or None)
    steps = options.epochs * len(pieces)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    # so that gradients are of one size, whatever the model's scale
    scale = sum(float(r.float().square().mean()) for r in fitting.r if r.numel()) / len(fitting.r)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(options.epochs):
            for place in torch.randperm(len(pieces), generator=generator).tolist():
                y, r = fitting.output(pieces[place])
                loss = (y - r).square().mean() / max(scale, 1e-30)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


def _size(module: nn.Module) -> float:
    """The root mean square of a module's matrix: what its steps are measured by."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return float(weight.detach().float().square().mean().sqrt())
