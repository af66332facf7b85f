"""Causal decoders generate the same tokens as the whole model with its units masked, whatever the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import stock_models as stock
from faster_pruner import load
from faster_pruner.checkpoint.remote import MODULE
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


# Ways of decoding beside the greedy one.
WAYS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2},
}


@pytest.mark.parametrize("size", ["some", "least"])
@pytest.mark.parametrize(("name", "unit"), [("llama", "group"), ("llama", "head"), ("gpt2", "group")])
def test_in_memory_reopened_and_by_remote_code_generate_alike(
    name: str, unit: AttentionUnit, size: str, tmp_path: Path
) -> None:
    model, described = stock.dense(name, unit)
    sublayers = described.sublayers
    keep = (stock.some if size == "some" else stock.least)(sublayers)
    smaller, left = stock.cut(model, sublayers, keep)
    place = stock.save(smaller, left, tmp_path / "saved")
    # as transformers opens it where faster-pruner is not installed
    code: Any = get_class_from_dynamic_module(f"{MODULE}.{type(model).__name__}", place)
    reopened, remote = load(place), code.from_pretrained(place).eval()
    assert type(remote).__module__.startswith("transformers_modules")
    ids, mask = prompts()
    for way, options in WAYS.items():
        found: list[Tensor] = []
        for own in (smaller, reopened, remote):
            torch.manual_seed(0)
            fixed = {"max_new_tokens": _STEPS, "eos_token_id": None, "pad_token_id": 0}
            found.append(own.generate(ids, attention_mask=mask, **fixed, **options))
        assert torch.equal(found[0], found[1]), way
        assert torch.equal(found[0], found[2]), way
    # a draft that is proposed by one model and accepted by the other changes no token of the greedy ones
    row, alone = ids[:1], mask[:1]
    expected = one_by_one(smaller, row, alone)
    for own, draft in ((smaller, model), (reopened, model), (model, reopened), (remote, smaller)):
        asked = expected if own is not model else one_by_one(model, row, alone)
        assert torch.equal(generated(own, row, alone, assistant_model=draft), asked)


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
