"""One contract over every row of the family table and every made-up family: what happens to sizes.

What passes over a model see is in `test_contract_of_passes`.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cases
import tiny
from cases import Case, inputs_of, logits_of
from faster_pruner.costs.cost import Bytes, Macs, Parameters, total
from faster_pruner.model.shrink import resize, shrink
from faster_pruner.model.spec import Sublayer, bias_of, parts_by_name
from faster_pruner.model.table import FAMILIES
from oracles import masked_logits


@pytest.fixture(params=cases.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return cases.make(name)


def extremes(case: Case) -> dict[str, Case]:
    """The model as it is, with uneven sizes, and with as little as there may be."""
    names = {s.name for s in case.sublayers}
    return {
        "whole": case,
        "uneven": case.shrunk(cases.uneven(case.sublayers)),
        "least": case.shrunk(cases.emptied(case.sublayers, names)),
    }


def test_every_row_has_a_tiny_config() -> None:
    assert set(tiny.CONFIGS) == set(FAMILIES)


def test_full_selection_changes_no_bit(case: Case, name: str) -> None:
    full = case.shrunk(cases.everything(case.sublayers))
    assert torch.equal(logits_of(full.model, inputs_of(name)), logits_of(case.model, inputs_of(name)))
    assert full.sublayers == case.sublayers


def test_masked_equals_sliced(case: Case, name: str) -> None:
    selection = cases.uneven(case.sublayers)
    smaller = case.shrunk(selection)
    with torch.no_grad():
        masked = masked_logits(case.model, case.sublayers, inputs_of(name), cases.masks_of(selection, case.sublayers))
    assert [s.units for s in smaller.sublayers] == [selection[s.name].numel() for s in case.sublayers]
    assert torch.allclose(logits_of(smaller.model, inputs_of(name)), masked, atol=1e-5)
    assert not torch.allclose(logits_of(case.model, inputs_of(name)), masked, atol=1e-3)


def test_any_sublayers_can_be_emptied(case: Case, name: str) -> None:
    kinds = {s.alike for s in case.sublayers}
    groups = [{s.name} for s in case.sublayers]
    groups += [{s.name for s in case.sublayers if s.alike == kind} for kind in kinds]
    groups += [{s.name for s in case.sublayers}]
    for gone in groups:
        selection = cases.emptied(case.sublayers, gone)
        smaller = case.shrunk(selection)
        assert all(s.units == s.spec.least for s in smaller.sublayers if s.name in gone)
        with torch.no_grad():
            masks = cases.masks_of(selection, case.sublayers)
            masked = masked_logits(case.model, case.sublayers, inputs_of(name), masks)
        assert torch.allclose(logits_of(smaller.model, inputs_of(name)), masked, atol=1e-5), gone


def test_an_emptied_sublayer_puts_out_its_bias(case: Case, name: str) -> None:
    empty = [s for s in extremes(case)["least"].sublayers if s.units == 0]
    smaller = extremes(case)["least"].model
    seen: dict[str, torch.Tensor] = {}
    for s in empty:
        s.projection(smaller).register_forward_hook(lambda m, a, y, s=s: seen.update({s.name: y.clone()}))
    logits_of(smaller, inputs_of(name))
    assert set(seen) == {s.name for s in empty}
    for s in empty:
        bias = bias_of(s.projection(case.model))
        expected = torch.zeros(s.width) if bias is None else bias.detach()
        assert torch.equal(seen[s.name], expected.expand_as(seen[s.name]))
        assert seen[s.name].shape[-1] == s.width
        assert s.weight(smaller).shape == (s.width, 0)


def test_shrinking_twice_is_shrinking_once(case: Case, name: str) -> None:
    first = {s.name: torch.arange(s.units)[s.units > 2 :] for s in case.sublayers}
    second = {key: torch.arange(keep.numel())[1::2] for key, keep in first.items()}
    once = case.shrunk({key: first[key][second[key]] for key in first})
    twice = case.shrunk(first).shrunk(second)
    assert twice.sublayers == once.sublayers
    assert torch.equal(logits_of(twice.model, inputs_of(name)), logits_of(once.model, inputs_of(name)))
    again = twice.shrunk(cases.emptied(twice.sublayers, {s.name for s in twice.sublayers}))
    assert again.sublayers == extremes(case)["least"].sublayers


def test_sizes_and_weights_say_everything(case: Case, name: str) -> None:
    # what opening a checkpoint does: a stock model, its first units, then the weights
    for smaller in extremes(case).values():
        fresh = cases.make(name, seed=1)
        sizes = {s.name: s.units for s in smaller.sublayers}
        parts = resize(fresh.model, parts_by_name(fresh.sublayers), sizes)
        assert parts == parts_by_name(smaller.sublayers)
        fresh.model.load_state_dict(smaller.model.state_dict())
        assert torch.equal(logits_of(fresh.model, inputs_of(name)), logits_of(smaller.model, inputs_of(name)))


def flops_in(model: nn.Module, sublayers: list[Sublayer], inputs: dict[str, torch.Tensor]) -> dict[str, int]:
    """By stack: what torch counts inside its layers in one forward of the whole model."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).requires_grad_(False)(**inputs)
    counts = {module: sum(by_kind.values()) for module, by_kind in counter.get_flop_counts().items()}
    layers = {(s.stack.name, f"{type(model).__name__}.{s.prefix.removesuffix('.')}") for s in sublayers}
    found = dict.fromkeys((stack for stack, _ in layers), 0)
    for stack, layer in layers:
        found[stack] += counts.get(layer, 0)
    return found


def test_macs_are_what_torch_counts(case: Case, name: str) -> None:
    inputs = inputs_of(name)
    rows = 3
    lengths = {s.stack.name: {"image": 4.0, "encoder": 5.0}.get(s.stack.name, 7.0) for s in case.sublayers}
    for smaller in extremes(case).values():
        counted = flops_in(smaller.model, smaller.sublayers, inputs)
        for stack, flops in counted.items():
            own = [s for s in smaller.sublayers if s.stack.name == stack]
            twice = sum(_called_again(s, rows, 7) for s in own)
            assert flops == 2 * (rows * total(Macs(lengths), own) + twice)


def _called_again(sublayer: Sublayer, rows: int, length: int) -> int:
    """MACs of what a made-up sublayer does besides: keys of all distances, and their products with the queries."""
    if not any(spec.source == "several" for spec in sublayer.spec.producers):
        return 0
    places = 2 * 8 - 1
    return sublayer.columns * places * (sublayer.parts.producers[1].inputs + rows * length)


def counted_parameters(model: nn.Module, sublayers: list[Sublayer]) -> int:
    """Parameters of all producers and of all projections without their biases, one by one."""
    found = 0
    for s in sublayers:
        found += sum(p.numel() for key, p in s.projection(model).named_parameters() if key == "weight")
        for producer in s.parts.producers if s.units else ():
            found += sum(p.numel() for p in model.get_submodule(producer.path).parameters())
    return found


def test_parameters_are_what_the_model_has(case: Case) -> None:
    fixed = Parameters().fixed(case.model, case.sublayers)
    for smaller in extremes(case).values():
        assert total(Parameters(), smaller.sublayers) == counted_parameters(smaller.model, smaller.sublayers)
        assert total(Bytes(2), smaller.sublayers) == 2 * total(Parameters(), smaller.sublayers)
        left = sum(p.numel() for p in smaller.model.parameters())
        # entries per head of a table are in what stays, though they go
        tables = sum(
            (s.units - t.units)
            * f.per_unit
            * (f.axis is not None)
            * getattr(case.model.get_submodule(f.module), f.name).shape[0]
            for s, t in zip(case.sublayers, smaller.sublayers, strict=True)
            for f in s.parts.followers
            if not f.argument and f.name == "table"
        )
        assert fixed + total(Parameters(), smaller.sublayers) == left + tables


def test_a_shrunk_model_still_trains(case: Case, name: str) -> None:
    for size, smaller in extremes(case).items():
        parameters = dict(smaller.model.named_parameters())
        loss = smaller.model(**inputs_of(name)).logits.square().sum()
        loss.backward()
        # nothing hears what comes ahead of an emptied branch
        assert size == "least" or all(p.grad is not None for p in parameters.values())
        assert all(bool(p.grad.isfinite().all()) for p in parameters.values() if p.grad is not None)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter -= 1e-5 * (0.0 if parameter.grad is None else parameter.grad)
        assert logits_of(smaller.model, inputs_of(name)).square().sum() < loss.detach()


def test_a_copy_keeps_its_size_and_flags(case: Case, name: str) -> None:
    before = logits_of(case.model, inputs_of(name))
    case.model.requires_grad_(False)
    other = copy.deepcopy(case.model).double().train()
    smaller = [s.resized(shrink(other, s.parts, torch.arange(s.spec.least))) for s in case.sublayers]
    assert all(module.training for module in other.modules())
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float64}
    assert all(s.weight(other).dtype == torch.float64 for s in smaller)
    assert torch.equal(logits_of(case.model, inputs_of(name)), before)
