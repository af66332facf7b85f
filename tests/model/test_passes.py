"""Passes leave nothing behind, and every module runs once per batch however the model likes to run it."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import cases
import stock_models
import tiny
from cases import Case
from faster_pruner.model.gradients import Observation, gradients
from faster_pruner.model.lockstep import lockstep
from faster_pruner.model.passes import first_input, inference
from faster_pruner.model.spec import Sublayer


def hook_count(model: nn.Module) -> int:
    """Hooks of all kinds on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def state(model: nn.Module) -> list[object]:
    """All that a pass has to put back."""
    flags: list[object] = [m.training for m in model.modules()]
    flags += [p.requires_grad for p in model.parameters()]
    flags += [getattr(m, "chunk_size_feed_forward", None) for m in model.modules()]
    return [*flags, hook_count(model), torch.is_grad_enabled()]


@pytest.fixture(params=sorted(tiny.CONFIGS))
def case(request: pytest.FixtureRequest) -> Case:
    made = cases.make(request.param)
    made.model.train()
    next(iter(made.model.children())).eval()
    next(made.model.parameters()).requires_grad_(False)
    return made


def failing(fails: bool) -> AbstractContextManager[object]:
    return pytest.raises(ZeroDivisionError) if fails else nullcontext()


@pytest.mark.parametrize("fails", [False, True])
def test_lockstep_leaves_nothing_behind(case: Case, fails: bool) -> None:
    before, batches = state(case.model), tiny.make_batches(tiny.make_rows())
    with failing(fails), lockstep(case.model, case.sublayers, batches) as run:
        list(run.arrivals(case.sublayers[0]))
        assert not any(m.training for m in case.model.modules())
        if fails:
            raise ZeroDivisionError
    assert state(case.model) == before


def test_an_error_inside_the_model_reaches_the_caller(case: Case) -> None:
    batches = tiny.make_batches(tiny.make_rows())

    def explode(module: nn.Module, args: object) -> None:
        raise FloatingPointError("boom")

    handle = case.sublayers[2].projection(case.model).register_forward_pre_hook(explode)
    before = state(case.model)
    with pytest.raises(FloatingPointError), lockstep(case.model, case.sublayers, batches) as run:
        for sublayer in case.sublayers:
            list(run.arrivals(sublayer))
    assert state(case.model) == before
    handle.remove()


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_leave_nothing_behind(case: Case, fails: bool) -> None:
    before, batch = state(case.model), tiny.make_batches(tiny.make_rows())[0]
    names: list[str] = []

    def report(sublayer: Sublayer, seen: Observation) -> None:
        names.append(sublayer.name)
        assert seen.x_gradient is not None
        assert seen.y_gradient is not None
        assert seen.base is not None
        assert seen.x.shape == seen.x_gradient.shape == (*batch.inputs["input_ids"].shape, sublayer.columns)
        assert seen.y.shape == seen.y_gradient.shape == seen.base.shape

    with failing(fails), gradients(case.model, case.sublayers, report):
        logits = case.model(**batch.inputs).logits
        if fails:
            raise ZeroDivisionError
        logits.sum().backward()
    assert names == ([] if fails else [s.name for s in reversed(case.sublayers)])
    assert state(case.model) == before
    assert all(p.grad is None for p in case.model.parameters())


def test_a_model_that_runs_its_ffn_in_pieces_reports_once() -> None:
    case = cases.make("bert")
    pieces = cases.Case(tiny.make_model("bert", chunk_size_feed_forward=2), case.family, case.sublayers, case.joined)
    batches = [cases.batch_of(cases.inputs_of("bert", seed=seed, length=6)) for seed in range(2)]
    calls: Counter[str] = Counter()
    ffn = pieces.sublayers[1]
    ffn.projection(pieces.model).register_forward_hook(lambda m, a, y: calls.update(["ffn"]))
    plain = cases.logits_of(pieces.model, batches[0].inputs)
    assert calls["ffn"] == 3
    before = state(pieces.model)
    reports: list[str] = []
    with gradients(pieces.model, pieces.sublayers, lambda s, seen: reports.append(s.name)):
        pieces.model(**batches[0].inputs).logits.sum().backward()
    assert reports == [s.name for s in reversed(pieces.sublayers)]
    with lockstep(pieces.model, pieces.sublayers, batches) as run:
        for sublayer in pieces.sublayers:
            assert [arrival.x.shape[:2] for arrival in run.arrivals(sublayer)] == [(3, 6), (3, 6)]
        assert torch.allclose(run.finish()[0].logits, plain, atol=1e-6)
    # rows of an odd length could not even run in pieces of two
    odd = cases.inputs_of("bert", length=7)
    with inference(pieces.model):
        pieces.model(**odd)
    with pytest.raises(ValueError, match="chunk"):
        pieces.model(**odd)
    with pytest.raises(ZeroDivisionError), inference(pieces.model):
        raise ZeroDivisionError
    assert state(pieces.model) == before


def test_the_first_tensor_is_found_however_it_is_passed() -> None:
    x, other = torch.zeros(1), torch.ones(2)
    assert first_input((x, other), {}) is x
    assert first_input((None, x), {"other": other}) is x
    assert first_input((), {"flag": True, "x": x}) is x


def test_suspended_forwards_keep_no_keys_and_values() -> None:
    """They are as large as hidden states, for every layer, until the last sublayer is done."""
    model, described = stock_models.dense("llama")
    rows = tiny.make_batches(replace(tiny.make_rows(), labels=None))
    model.config.use_cache = True
    keys = ("input_ids", "attention_mask")
    batches = [replace(batch, inputs={key: batch.inputs[key].clamp(max=7) for key in keys}) for batch in rows]
    assert model(**batches[0].inputs).past_key_values is not None
    with lockstep(model, described.sublayers, batches) as run:
        for sublayer in described.sublayers:
            list(run.arrivals(sublayer))
        run.finish()
        assert all(returned.past_key_values is None for returned in run.returned)
    assert model.config.use_cache
