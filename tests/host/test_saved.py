"""What a forward leaves for its backward: the same gradients wherever it is kept."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from faster_pruner.host.saved import Packed, Saved
from faster_pruner.host.spill import Shelf


def model() -> nn.Module:
    """With views, a product of two activations, and weights that ask for no gradient."""
    torch.manual_seed(0)
    layers = [nn.Linear(256, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 256), nn.Tanh()]
    return nn.Sequential(*layers).requires_grad_(False)


def gradient(own: nn.Module, x: torch.Tensor, saved: Saved | None) -> torch.Tensor:
    """dL/dx."""
    x = x.clone().requires_grad_()
    y = x
    if saved is None:
        y = own(y) * x.T.contiguous().T
        y.square().sum().backward()
    else:
        with saved.graph():
            y = own(y) * x.T.contiguous().T
            y.square().sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("limit", [0, 600_000, 1 << 30])
def test_gradients_are_the_same_bits(limit: int) -> None:
    own, x = model(), torch.randn(256, 256)
    expected, shelf = gradient(own, x, None), Shelf(limit)
    saved = Saved(shelf, own.parameters())
    for _ in range(3):
        assert torch.equal(gradient(own, x, saved), expected)
    assert (shelf.spilled > 0) == (limit < 1 << 30)
    gc.collect()
    assert shelf.held == 0


def test_a_storage_is_kept_once_and_weights_not_at_all() -> None:
    shelf, weight, x = Shelf(0), torch.randn(200, 200), torch.randn(200, 200)
    saved = Saved(shelf, [weight])
    assert isinstance(saved.pack(weight.T), torch.Tensor)
    assert isinstance(saved.pack(torch.zeros(3)), torch.Tensor)
    whole, part = saved.pack(x), saved.pack(x[3:7].T)
    assert isinstance(whole, Packed)
    assert isinstance(part, Packed)
    assert shelf.spilled == x.nbytes
    assert torch.equal(part.unpacked(), x[3:7].T)
    before = x.clone()
    x.add_(1)
    # what was kept is what there was
    assert torch.equal(whole.unpacked(), before)
    later = saved.pack(x)
    assert shelf.spilled == 2 * x.nbytes
    assert torch.equal(saved.unpack(later), before + 1)


def test_a_file_is_used_again_only_where_nobody_looks_at_it() -> None:
    saved = Saved(Shelf(0), [])
    first = torch.randn(200, 200)
    kept = saved.pack(first)
    assert isinstance(kept, Packed)
    looked_at = kept.unpacked()
    del kept
    second = saved.pack(torch.zeros(200, 200))
    assert torch.equal(looked_at, first)
    place = saved.unpack(second).untyped_storage().data_ptr()
    del second
    third = saved.pack(torch.ones(200, 200))
    # of the second one nothing was to be kept
    assert saved.unpack(third).untyped_storage().data_ptr() == place
