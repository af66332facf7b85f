"""One contract over every row of the family table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from faster_pruner import surgery
from faster_pruner.checkpoint import load, mark_as_pruned, write_checkpoint
from faster_pruner.costs import encoder_macs, encoder_parameters, unit_macs
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.families import FAMILIES, Sublayer, base_model, family_of, resolve
from faster_pruner.selection.search import Selection

FAMILY_NAMES = sorted(FAMILIES)
INPUTS = {"input_ids": torch.randint(4, tiny.VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))}


def uneven(sublayers: list[Sublayer]) -> Selection:
    """A different number of units in every sublayer, not the first ones."""
    return {s.name: torch.arange(s.units)[1 + place % 2 :: 2] for place, s in enumerate(sublayers)}


def masks_of(selection: Selection, sublayers: list[Sublayer]) -> dict[str, torch.Tensor]:
    """Zeros and ones that say the same as a selection."""
    masks = {s.name: torch.zeros(s.units) for s in sublayers}
    for name, keep in selection.items():
        masks[name][keep] = 1.0
    return masks


@pytest.fixture(params=FAMILY_NAMES)
def family_name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_row_has_a_tiny_config() -> None:
    assert set(tiny.CONFIGS) == set(FAMILIES)


def test_sublayers_have_the_sizes_of_the_config(family_name: str) -> None:
    sublayers = resolve(tiny.make_model(family_name), family_of(family_name))
    assert [(s.name, s.units, s.unit_size, s.width) for s in sublayers] == [
        ("layers.0.attention", 3, 8, 24),
        ("layers.0.ffn", 40, 1, 24),
        ("layers.1.attention", 3, 8, 24),
        ("layers.1.ffn", 40, 1, 24),
    ]


@torch.no_grad()
def test_full_selection_changes_no_bit(family_name: str) -> None:
    model = tiny.make_model(family_name)
    before = model(**INPUTS).logits
    surgery.prune_units(
        model, family_of(family_name), {s.name: torch.arange(s.units) for s in resolve(model, family_of(family_name))}
    )
    assert torch.equal(model(**INPUTS).logits, before)


@torch.no_grad()
def test_masked_equals_sliced(family_name: str) -> None:
    from oracles import masked_logits

    model = tiny.make_model(family_name)
    sublayers = resolve(model, family_of(family_name))
    selection = uneven(sublayers)
    masked = masked_logits(model, sublayers, INPUTS, masks_of(selection, sublayers))
    resized = surgery.prune_units(model, family_of(family_name), selection)
    assert [s.units for s in resized] == [selection[s.name].numel() for s in sublayers]
    assert torch.allclose(model(**INPUTS).logits, masked, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("gone", ["layers.0.attention", "layers.1.ffn"])
def test_a_sublayer_without_units_becomes_its_bias(family_name: str, gone: str) -> None:
    from oracles import masked_logits

    model = tiny.make_model(family_name)
    family = family_of(family_name)
    sublayers = resolve(model, family)
    selection = {gone: torch.empty(0, dtype=torch.long)}
    full = {s.name: torch.arange(s.units) for s in sublayers}
    masked = masked_logits(model, sublayers, INPUTS, masks_of({**full, **selection}, sublayers))
    resized = {s.name: s for s in surgery.prune_units(model, family, selection)}
    assert resized[gone].units == 0
    assert encoder_macs([resized[gone]], 7) == 0
    assert torch.allclose(model(**INPUTS).logits, masked, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("empty", [False, True])
def test_saved_equals_reopened_bit_for_bit(family_name: str, empty: bool, tmp_path: Path) -> None:
    model = tiny.make_model(family_name)
    family = family_of(family_name)
    selection = uneven(resolve(model, family))
    if empty:
        selection["layers.1.attention"] = torch.empty(0, dtype=torch.long)
        selection["layers.0.ffn"] = torch.empty(0, dtype=torch.long)
    surgery.prune_units(model, family, selection)
    mark_as_pruned(model, family)
    write_checkpoint(tmp_path, model, tiny.make_tokenizer(), dtype=torch.float32)
    reopened = load(tmp_path)
    assert type(reopened) is type(model)
    reopened.set_attn_implementation("eager")
    assert torch.equal(reopened(**INPUTS).logits, model(**INPUTS).logits)


@torch.no_grad()
def test_macs_are_what_torch_counts(family_name: str) -> None:
    model = tiny.make_model(family_name)
    family = family_of(family_name)
    surgery.prune_units(model, family, uneven(resolve(model, family)))
    rows, length = INPUTS["input_ids"].shape
    hidden = torch.randn(rows, length, 24)
    base, _ = base_model(model)
    with FlopCounterMode(display=False) as counter:
        for layer in base.get_submodule(family.layers):
            layer(hidden)
    assert counter.get_total_flops() == 2 * rows * encoder_macs(resolve(model, family), length)


def test_parameters_of_the_sublayers_are_what_the_model_has(family_name: str) -> None:
    model = tiny.make_model(family_name)
    family = family_of(family_name)
    surgery.prune_units(model, family, uneven(resolve(model, family)))
    sublayers = resolve(model, family)
    direct = sum(s.output_of(model).weight.numel() for s in sublayers)
    for sublayer in sublayers:
        for path in sublayer.producer_paths:
            direct += sum(p.numel() for p in model.get_submodule(path).parameters())
    assert encoder_parameters(sublayers) == direct
    assert all(unit_macs(s, 10) > 0 for s in sublayers)


def test_a_pruned_model_still_trains(family_name: str) -> None:
    model = tiny.make_model(family_name)
    family = family_of(family_name)
    surgery.prune_units(model, family, uneven(resolve(model, family)))
    model.train()
    model(**INPUTS, labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "output" in n and "weight" in n)


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError, match="'t5' is not supported; supported are: bert, distilbert, roberta"):
        family_of("t5")
