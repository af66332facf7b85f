"""Query heads as units where they share keys and values: of every group the same number, and the cache as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import stock_models as stock
from faster_pruner import Budget, load, preset, prune_model
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.describe import describe
from faster_pruner.model.shrink import resize
from faster_pruner.model.spec import Sublayer, parts_by_name
from faster_pruner.options import AllocationName, Switches, customise

pytestmark = pytest.mark.filterwarnings("ignore")

BY_HEAD = customise(preset("default"), Switches(attention_unit="head"))
# Separate matrices, a size of a head that is stated nowhere, norms of heads, one matrix for all three, two norms.
NAMES = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "stablelm")


def attentions(sublayers: list[Sublayer]) -> list[Sublayer]:
    return [s for s in sublayers if s.spec.mixes_tokens]


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, stock.WORDS, (8, 12), generator=generator)} for _ in range(4)]


@pytest.mark.parametrize("name", NAMES)
def test_a_group_falls_into_its_query_heads(name: str) -> None:
    model, described = stock.dense(name)
    _, by_head = stock.dense(name, "head")
    whole, heads = attentions(described.sublayers), attentions(by_head.sublayers)
    assert [(s.units, s.spec.unit) for s in whole] == [(2, "group")] * 2
    assert [(s.units, s.parts.groups, s.spec.unit) for s in heads] == [(4, 2, "head")] * 2
    assert [s.columns for s in heads] == [s.columns for s in whole]
    keep = stock.some(by_head.sublayers)
    smaller, left = stock.cut(model, by_head.sublayers, keep)
    inputs = stock.inputs_for(model)
    with torch.no_grad():
        found = smaller(**inputs).logits
        with stock.masked(model, by_head.sublayers, keep):
            expected = model(**inputs).logits
        assert not torch.allclose(model(**inputs).logits, expected, atol=1e-3)
        # keys and values are as many as before
        caches = [own(**inputs, use_cache=True).past_key_values for own in (model, smaller)]
    assert torch.allclose(found, expected, atol=1e-5)
    assert [layer.keys.shape for layer in caches[1].layers] == [layer.keys.shape for layer in caches[0].layers]
    assert all(s.units == 2 for s in attentions(left))


@pytest.mark.parametrize("allocation", ["free", "uniform", "stock"])
def test_every_group_keeps_the_same_number(allocation: AllocationName, tmp_path: Path, quick_latency: None) -> None:
    model = stock.build("llama")
    budget = Budget(macs=0.4, allocation=allocation)
    result = prune_model(model, batches(), macs=budget, method=BY_HEAD)
    counts = [s.units for s in result.report.sublayers if s.unit == "head"]
    assert len(counts) == 2
    assert set(counts) <= {0, 2, 4}
    assert counts != [4, 4]
    assert result.report.macs_kept <= 0.4
    result.save(tmp_path / "out")
    with torch.no_grad():
        expected = result.model(**batches()[0]).logits
        assert torch.equal(load(tmp_path / "out")(**batches()[0]).logits, expected)
        remote = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
        assert torch.equal(remote(**batches()[0]).logits, expected)


_STOCK = """
import json, sys, torch
from transformers import AutoModelForCausalLM
assert "faster_pruner" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor(json.loads(sys.argv[2]))
with torch.no_grad():
    print(json.dumps([type(model).__name__, model(input_ids=ids).logits.double().sum().item(),
                      model.config.num_attention_heads, model.config.num_key_value_heads,
                      model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0].tolist()]))
"""


@pytest.mark.parametrize("unit", ["group", "head"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_stock_sizes_open_in_a_process_of_their_own(name: str, unit: str, tmp_path: Path, quick_latency: None) -> None:
    method = customise(preset("default"), Switches(attention_unit=unit))
    result = prune_model(stock.build(name), batches(), macs=Budget(macs=0.4, allocation="stock"), method=method)
    result.save(tmp_path / "out")
    ids = batches()[0]["input_ids"][:1]
    run = subprocess.run(
        [sys.executable, "-c", _STOCK, str(tmp_path / "out"), json.dumps(ids.tolist())],
        capture_output=True,
        text=True,
        check=True,
    )
    said: list[Any] = json.loads(run.stdout.splitlines()[-1])
    with torch.no_grad():
        expected = result.model(input_ids=ids).logits.double().sum().item()
    tokens = result.model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0].tolist()
    sizes = (2, 1) if unit == "group" else (2, 2)
    assert said == [type(result.model).__name__, expected, *sizes, tokens]


def test_a_size_that_tears_groups_apart_is_refused() -> None:
    model, described = stock.dense("llama", "head")
    own = attentions(described.sublayers)[0]
    with pytest.raises(ValueError, match="cannot have 3 units: it has 0 to 4, in steps of 2"):
        resize(model, parts_by_name(described.sublayers), {own.name: 3})


def test_a_matrix_of_whole_groups_is_refused_in_words() -> None:
    model = stock.build("falcon-groups")
    inputs = stock.inputs_for(model)
    assert {s.spec.unit for s in attentions(describe(model, inputs).sublayers)} == {"group"}
    with pytest.raises(UnsupportedModelError, match=r"query heads cannot go one by one from the groups of"):
        describe(model, inputs, "head")
