"""Slow, obvious computations that the package is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from faster_pruner.model.spec import Sublayer


def random_spd(n: int, condition: float, seed: int = 0) -> Tensor:
    """A symmetric positive definite [n, n] with the given condition number, float64."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)
    return q @ torch.diag(values) @ q.T


def masked_logits(
    model: nn.Module, sublayers: Sequence[Sublayer], inputs: dict[str, Tensor], masks: Mapping[str, Tensor]
) -> Tensor:
    """Logits with the input columns of every output projection multiplied by explicit masks [U]."""
    handles = []
    for sublayer in sublayers:
        columns = masks[sublayer.name].repeat_interleave(sublayer.unit_size)

        def scale(module: nn.Module, args: tuple[Tensor, ...], columns: Tensor = columns) -> tuple[Tensor, ...]:
            return (args[0] * columns, *args[1:])

        handles.append(sublayer.projection(model).register_forward_pre_hook(scale))
    try:
        return model(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()


def per_example_mask_gradients(
    model: nn.Module, sublayers: Sequence[Sublayer], tokens: Sequence[Sequence[int]], cotangents: Tensor
) -> dict[str, Tensor]:
    """[N, U] per sublayer: one autograd call per example, unpadded, through explicit mask tensors."""
    rows: dict[str, list[Tensor]] = {s.name: [] for s in sublayers}
    for ids, cotangent in zip(tokens, cotangents, strict=True):
        masks = {s.name: torch.ones(s.units, requires_grad=True) for s in sublayers}
        logits = masked_logits(model, sublayers, {"input_ids": torch.tensor([ids])}, masks)
        found = torch.autograd.grad(logits, list(masks.values()), cotangent[None])
        for name, gradient in zip(masks, found, strict=True):
            rows[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


@dataclass(frozen=True)
class Traced:
    """One output projection in the forward and backward of one example: x [S, n], y and dL/dy [S, d], dL/dmask [U]."""

    x: Tensor
    y: Tensor
    y_gradient: Tensor
    mask_gradient: Tensor


def trace(
    model: nn.Module, sublayers: Sequence[Sublayer], values: Callable[[], Tensor], cotangents: Tensor
) -> dict[str, Traced]:
    """By sublayer, one autograd call from `cotangents` at the `values` of one example without padding."""
    masks = {s.name: torch.ones(s.units, requires_grad=True) for s in sublayers}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for s in sublayers:

        def mask(module: nn.Module, args: tuple[Tensor, ...], s: Sublayer = s) -> tuple[Tensor, ...]:
            return (args[0] * masks[s.name].repeat_interleave(s.unit_size), *args[1:])

        def keep(module: nn.Module, args: tuple[Tensor, ...], y: Tensor, s: Sublayer = s) -> None:
            seen[s.name] = (args[0], y)

        handles.append(s.projection(model).register_forward_pre_hook(mask))
        handles.append(s.projection(model).register_forward_hook(keep))
    try:
        start = values()
    finally:
        for handle in handles:
            handle.remove()
    wanted = [*masks.values(), *(seen[name][1] for name in masks)]
    found = torch.autograd.grad(start, wanted, cotangents, allow_unused=True)
    found = [torch.zeros_like(of) if each is None else each for each, of in zip(found, wanted, strict=True)]
    return {
        name: Traced(seen[name][0][0].detach(), seen[name][1][0].detach(), y_gradient[0], mask_gradient)
        for name, mask_gradient, y_gradient in zip(masks, found[: len(masks)], found[len(masks) :], strict=True)
    }


def best_selection_by_brute_force(importance: Mapping[str, Tensor], cost: Mapping[str, float], budget: float) -> float:
    """The largest total importance of any set of units within the budget."""
    units = [(name, u) for name, values in importance.items() for u in range(values.numel())]
    best = 0.0
    for size in range(len(units) + 1):
        for chosen in itertools.combinations(units, size):
            if sum(cost[name] for name, _ in chosen) <= budget:
                best = max(best, sum(float(importance[name][u]) for name, u in chosen))
    return best


def rearrange_by_brute_force(keep: Sequence[int], gradients: Tensor) -> list[int]:
    """Kwon et al.'s swaps with every candidate's cost computed from scratch."""
    importance = gradients.double().square().sum(dim=0)
    pruned = [u for u in range(gradients.shape[1]) if u not in set(keep)]
    for offered in importance.argsort(stable=True).tolist():
        if offered in pruned:
            continue
        candidates = sorted([*pruned, offered])
        costs = {
            back: float(gradients.double()[:, [u for u in candidates if u != back]].sum(dim=1).square().sum())
            for back in candidates
        }
        back = min(costs, key=lambda u: costs[u])
        pruned = [u for u in candidates if u != back]
    return [u for u in range(gradients.shape[1]) if u not in pruned]


def removal_loss(gram: Tensor, weighted: Tensor, removed: Sequence[int], group: int) -> float:
    """Loss of removing units with the rest compensating, by a direct least-squares solve.

    min over V' with zero rows at the removed columns of ``tr((V' - V)' A (V' - V))``.
    """
    gone = [u * group + c for u in removed for c in range(group)]
    left = [c for c in range(gram.shape[0]) if c not in set(gone)]
    root = torch.linalg.cholesky(gram).T
    target = root @ weighted
    if not left:
        return float(target.square().sum())
    fitted = torch.linalg.lstsq(root[:, left], target).solution
    return float((root[:, left] @ fitted - target).square().sum())


def knapsack_by_brute_force(losses: Sequence[Tensor], costs: Sequence[Tensor], limits: Sequence[float]) -> float:
    """Least total loss [P per item] over all combinations of points whose costs [L, P per item] meet every limit."""
    best = float("inf")
    most = torch.tensor(limits, dtype=torch.float64) * (1 + 1e-12)
    for points in itertools.product(*(range(loss.numel()) for loss in losses)):
        spent = sum(cost[:, p] for cost, p in zip(costs, points, strict=True))
        if bool((spent <= most).all()):
            best = min(best, sum(float(loss[p]) for loss, p in zip(losses, points, strict=True)))
    return best
