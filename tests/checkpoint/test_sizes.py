"""Sizes in a config: what is written, in which shape, and what the stock class can express."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

import cases
import tiny
from cases import Case, inputs_of, logits_of
from faster_pruner.checkpoint.sizes import (
    build_stock,
    mark_as_pruned,
    opens_with_stock_class,
    sized,
    sublayers_of,
    without_layer_sizes,
)
from faster_pruner.errors import CheckpointError
from faster_pruner.model.shrink import resize
from faster_pruner.model.spec import Family, parts_by_name, resolve
from faster_pruner.model.table import FAMILIES
from made_up import MADE_UP


def marked(case: Case, **keeps: int) -> Case:
    """A case of which all sublayers of a kind keep so many units, with a config that says so."""
    smaller = case.shrunk({s.name: torch.arange(keeps.get(s.spec.kind, s.units)) for s in case.sublayers})
    mark_as_pruned(smaller.model, smaller.sublayers)
    return smaller


def test_which_sizes_the_stock_class_expresses() -> None:
    case = cases.make("bert")
    mark_as_pruned(case.model, case.sublayers)
    assert opens_with_stock_class(case.model, case.sublayers)
    one = case.shrunk({s.name: torch.arange(9 if s.name == "layers.0.ffn" else s.units) for s in case.sublayers})
    mark_as_pruned(one.model, one.sublayers)
    assert not opens_with_stock_class(one.model, one.sublayers)
    assert one.model.config.intermediate_size == 40
    both = marked(one, ffn=9)
    assert opens_with_stock_class(both.model, both.sublayers)
    assert both.model.config.intermediate_size == 9
    assert "per_layer_config" not in both.model.config.to_dict()
    heads = marked(both, attention=2)
    assert not opens_with_stock_class(heads.model, heads.sublayers)
    # a layer without any neuron is not what a stock class builds
    none = marked(both, ffn=0)
    assert not opens_with_stock_class(none.model, none.sublayers)
    assert none.model.config.intermediate_size == 9


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_config_says_the_sizes_twice(family: str) -> None:
    case = cases.make(family)
    smaller = case.shrunk(cases.uneven(case.sublayers))
    mark_as_pruned(smaller.model, smaller.sublayers)
    said = json.loads(json.dumps(smaller.model.config.to_dict()))
    assert said["faster_pruner"] == {"format": 2, "sizes": {s.name: s.units for s in smaller.sublayers}}
    fields = {s.spec.kind: s.spec.config[0] for s in smaller.sublayers}
    for s in smaller.sublayers:
        assert said["per_layer_config"][str(s.layer)][fields[s.spec.kind]] == s.units
    # plain transformers does not get any further than this
    stock: Any = transformers.AutoConfig.for_model(family).from_dict(said)
    with pytest.raises(Exception, match="per-layer attribute"):
        getattr(stock, fields["ffn"])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_sublayers_of_any_model_in_memory(family: str) -> None:
    case = cases.make(family)
    assert sublayers_of(case.model) == case.sublayers
    smaller = case.shrunk(cases.emptied(case.sublayers, {"layers.0.attention", "layers.1.ffn"}))
    mark_as_pruned(smaller.model, smaller.sublayers)
    assert sublayers_of(smaller.model) == smaller.sublayers
    again = smaller.shrunk({s.name: torch.arange(s.units // 2) for s in smaller.sublayers})
    mark_as_pruned(again.model, again.sublayers)
    assert sublayers_of(again.model) == again.sublayers


def test_the_stock_model_is_built_without_weights() -> None:
    smaller = marked(cases.make("bert"), attention=1, ffn=5)
    stock = build_stock(smaller.model)
    assert {p.device.type for p in stock.parameters()} == {"meta"}
    assert type(stock) is transformers.BertForSequenceClassification
    assert [s.units for s in resolve(stock, FAMILIES["bert"])] == [3, 5, 3, 5]


def test_a_config_without_layer_sizes_still_says_them_when_it_is_saved() -> None:
    smaller = marked(cases.make("bert"), attention=1, ffn=5)
    config = type(smaller.model.config).from_dict(smaller.model.config.to_dict())
    plain = without_layer_sizes(config)
    assert plain.num_attention_heads == 3
    assert plain.to_dict()["per_layer_config"] == config.to_dict()["per_layer_config"]
    assert plain.to_dict()["faster_pruner"] == config.to_dict()["faster_pruner"]
    # the config that was given is left as it was
    with pytest.raises(Exception, match="per-layer attribute"):
        _ = config.num_attention_heads


WRONG: list[tuple[object, str]] = [
    (None, "not a mapping"),
    ([1], "not a mapping"),
    ({"nope": 1}, "'nope' is not one of the 4 sublayers"),
    ({1: 1}, "'1' is not one of"),
    ({"layers.0.ffn": True}, "True units"),
    ({"layers.0.ffn": 3.0}, "3.0 units"),
    ({"layers.0.ffn": "3"}, "3 units"),
    ({"layers.0.ffn": -1}, "-1 units"),
    ({"layers.0.ffn": 41}, "it has 0 to 40"),
    ({"layers.0.ffn": torch.tensor(3)}, "units"),
]


@pytest.mark.parametrize(("sizes", "message"), WRONG)
def test_sizes_are_numbers_and_nothing_is_changed_before_all_are_checked(sizes: object, message: str) -> None:
    case = cases.make("bert")
    before = logits_of(case.model, inputs_of("bert"))
    given = {"layers.1.ffn": 2, **sizes} if isinstance(sizes, dict) else sizes
    with pytest.raises(ValueError, match=message):
        resize(case.model, parts_by_name(case.sublayers), given)
    case.model.config.faster_pruner = {"format": 2, "sizes": given}
    with pytest.raises(CheckpointError, match=message) as caught:
        sized(case.model, case.sublayers)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits_of(case.model, inputs_of("bert")), before)


def test_sizes_of_two_stacks_go_to_the_configs_of_both() -> None:
    case = cases.make("towers")
    stacks = [
        replace(
            stack,
            config=f"{stack.name}_config",
            sublayers=tuple(
                replace(spec, config=("intermediate_size",), stock=True)
                if spec.kind == "ffn"
                else replace(spec, config=("num_attention_heads",))
                for spec in stack.sublayers
            ),
        )
        for stack in MADE_UP["towers"].family.stacks
    ]
    config = transformers.PreTrainedConfig()
    for name in ("text_config", "image_config"):
        setattr(config, name, type(tiny.CONFIGS["bert"])(num_attention_heads=3, intermediate_size=10, hidden_size=12))
    case.model.config = config
    both = Case(case.model, case.family, resolve(case.model, Family(stacks=tuple(stacks))), {})
    assert opens_with_stock_class(both.model, both.sublayers)
    uniform = {s.name: torch.arange(7 if s.spec.kind == "ffn" else 3) for s in both.sublayers}
    smaller = both.shrunk(uniform)
    mark_as_pruned(smaller.model, smaller.sublayers)
    assert opens_with_stock_class(smaller.model, smaller.sublayers)
    assert smaller.model.config.text_config.intermediate_size == 7
    odd = smaller.shrunk({s.name: torch.arange(max(1, s.units - s.layer)) for s in smaller.sublayers})
    mark_as_pruned(odd.model, odd.sublayers)
    said = odd.model.config.to_dict()
    assert said["faster_pruner"]["sizes"] == {s.name: s.units for s in odd.sublayers}
    assert said["text_config"]["per_layer_config"] == {
        "0": {"num_attention_heads": 3, "intermediate_size": 7},
        "1": {"num_attention_heads": 2, "intermediate_size": 6},
    }
    assert said["image_config"]["per_layer_config"] == {"0": {"num_attention_heads": 3, "intermediate_size": 7}}
    # read again, the parts are what transformers refuses to build from, until the sizes are taken out
    for part in ("text_config", "image_config"):
        setattr(config, part, type(tiny.CONFIGS["bert"]).from_dict(said[part]))
    with pytest.raises(Exception, match="per-layer attribute"):
        _ = config.text_config.num_attention_heads
    plain = without_layer_sizes(config)
    assert plain.text_config.num_attention_heads == plain.image_config.num_attention_heads == 3
