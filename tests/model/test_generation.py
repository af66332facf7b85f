"""Causal decoders generate the same tokens as the whole model with its units masked, whatever the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stock_models as stock
from faster_pruner import load
from faster_pruner.options import AttentionUnit

pytestmark = pytest.mark.filterwarnings("ignore")

_STEPS = 8
# No cache; one that grows; one of a fixed length.
CACHES: dict[str, dict[str, Any]] = {
    "none": {"use_cache": False},
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
}


def prompts() -> tuple[Tensor, Tensor]:
    """Two rows [2, 6], the second one padded on the left, and their mask."""
    ids = torch.randint(3, stock.WORDS, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids * mask, mask


@torch.no_grad()
def one_by_one(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Greedy, each token from a whole forward without a cache: the oracle."""
    for _ in range(_STEPS):
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
        best = logits.topk(2, dim=1).values
        # a choice that rounding could turn round would make this a test of rounding
        assert float((best[:, 0] - best[:, 1]).min()) > 1e-3
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids


def generated(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """What transformers' own generate gives."""
    fixed = {"do_sample": False, "max_new_tokens": _STEPS, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, **fixed, **options)


@pytest.mark.parametrize("size", ["some", "least"])
@pytest.mark.parametrize(
    ("name", "unit"),
    [("llama", "group"), ("llama", "head"), ("gpt2", "group"), ("mistral", "head"), ("gpt-neox", "group")],
)
def test_greedy_tokens_are_those_of_the_masked_model(name: str, unit: AttentionUnit, size: str, tmp_path: Path) -> None:
    model, described = stock.dense(name, unit)
    sublayers = described.sublayers
    keep = (stock.some if size == "some" else stock.least)(sublayers)
    smaller, left = stock.cut(model, sublayers, keep)
    ids, mask = prompts()
    with stock.masked(model, sublayers, keep):
        expected = one_by_one(model, ids, mask)
    assert not torch.equal(expected, one_by_one(model, ids, mask))
    reopened = load(stock.save(smaller, left, tmp_path / "saved"))
    for own in (smaller, reopened):
        for cache, options in CACHES.items():
            assert torch.equal(generated(own, ids, mask, **options), expected), cache
    # padding on the left is not looked at
    alone = generated(reopened, ids[1:, 2:], mask[1:, 2:])
    assert torch.equal(alone[0], expected[1, 2:])


def test_a_model_with_an_encoder_generates_too(tmp_path: Path) -> None:
    """Cross-attention has a cache of its own."""
    model, described = stock.dense("t5")
    sublayers = described.sublayers
    for keep in (stock.some(sublayers), stock.least(sublayers)):
        smaller, left = stock.cut(model, sublayers, keep)
        ids, mask = prompts()
        with stock.masked(model, sublayers, keep):
            expected = generated(model, ids, mask, use_cache=False)
        reopened = load(stock.save(smaller, left, tmp_path / str(left[0].units)))
        for own in (smaller, reopened):
            for options in ({"use_cache": False}, {}):
                assert torch.equal(generated(own, ids, mask, **options), expected)
