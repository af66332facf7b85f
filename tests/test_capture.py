"""Lockstep and gradient capture: same numbers as a plain forward, and nothing left behind."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import tiny
from faster_pruner.capture import Observation, gradients, inference, lockstep
from faster_pruner.families import FAMILIES, Sublayer, family_of, resolve


def hook_count(model: nn.Module) -> int:
    """Hooks of all kinds on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def state(model: nn.Module) -> list[object]:
    """Training flags and requires_grad flags."""
    return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> nn.Module:
    made = tiny.make_model(request.param)
    made.train()
    next(iter(made.children())).eval()
    next(made.parameters()).requires_grad_(False)
    return made


def sublayers_of(model: nn.Module) -> list[Sublayer]:
    return resolve(model, family_of(model.config.model_type))


def test_lockstep_runs_every_module_once_per_batch_and_gives_plain_outputs(model: nn.Module) -> None:
    sublayers, batches = sublayers_of(model), tiny.make_batches(tiny.make_rows())
    with inference(model):
        expected = [model(**batch.inputs).logits for batch in batches]
    calls: Counter[nn.Module] = Counter()
    handles = [m.register_forward_hook(lambda m, a, o: calls.update([m])) for m in model.modules()]
    seen: list[tuple[str, int]] = []
    with lockstep(model, sublayers, batches) as run:
        for sublayer in sublayers:
            for arrival in run.arrivals(sublayer):
                seen.append((sublayer.name, arrival.batch))
                assert arrival.x.shape[-1] == sublayer.columns
                assert arrival.residual.shape[-1] == sublayer.width
        outputs = run.finish()
    for handle in handles:
        handle.remove()
    assert seen == [(s.name, i) for s in sublayers for i in range(len(batches))]
    assert all(torch.equal(o.logits, e) for o, e in zip(outputs, expected, strict=True))
    leaves = [m for m in model.modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
    assert {calls[m] for m in leaves} == {len(batches)}


def test_lockstep_also_stops_at_producers(model: nn.Module) -> None:
    sublayers, batches = sublayers_of(model), tiny.make_batches(tiny.make_rows())
    with inference(model):
        expected = [model(**batch.inputs).logits for batch in batches]
    with lockstep(model, sublayers, batches, producers=True) as run:
        for sublayer in sublayers:
            entered = list(run.entries(sublayer))
            assert [index for index, _ in entered] == list(range(len(batches)))
            for arrival, (_, x) in zip(run.arrivals(sublayer), entered, strict=True):
                # post-LayerNorm families add the branch to the very tensor that the producers read
                assert torch.equal(arrival.residual, x)
        outputs = run.finish()
    assert all(torch.equal(o.logits, e) for o, e in zip(outputs, expected, strict=True))


def test_weights_changed_between_sublayers_take_effect(model: nn.Module) -> None:
    sublayers, batches = sublayers_of(model), tiny.make_batches(tiny.make_rows())
    target = sublayers[1]
    with lockstep(model, sublayers, batches) as run:
        for sublayer in sublayers:
            list(run.arrivals(sublayer))
            if sublayer is target:
                with torch.no_grad():
                    target.output_of(model).weight.mul_(0.5)
        outputs = run.finish()
    with inference(model):
        assert torch.equal(outputs[0].logits, model(**batches[0].inputs).logits)


@pytest.mark.parametrize("fails", [False, True])
def test_lockstep_leaves_nothing_behind(model: nn.Module, fails: bool) -> None:
    before, hooks = state(model), hook_count(model)
    sublayers, batches = sublayers_of(model), tiny.make_batches(tiny.make_rows())
    with pytest.raises(ZeroDivisionError) if fails else _nothing(), lockstep(model, sublayers, batches) as run:
        list(run.arrivals(sublayers[0]))
        if fails:
            raise ZeroDivisionError
    assert state(model) == before
    assert hook_count(model) == hooks
    assert torch.is_grad_enabled()


def test_an_error_inside_the_model_reaches_the_caller(model: nn.Module) -> None:
    sublayers, batches = sublayers_of(model), tiny.make_batches(tiny.make_rows())
    hooks = hook_count(model)

    def explode(module: nn.Module, args: object) -> None:
        raise FloatingPointError("boom")

    handle = sublayers[2].output_of(model).register_forward_pre_hook(explode)
    with pytest.raises(FloatingPointError), lockstep(model, sublayers, batches) as run:
        for sublayer in sublayers:
            list(run.arrivals(sublayer))
    handle.remove()
    assert hook_count(model) == hooks


@pytest.mark.parametrize("fails", [False, True])
def test_gradient_capture_leaves_nothing_behind(model: nn.Module, fails: bool) -> None:
    before, hooks = state(model), hook_count(model)
    batch = tiny.make_batches(tiny.make_rows())[0]
    names: list[str] = []

    def report(sublayer: Sublayer, seen: Observation) -> None:
        names.append(sublayer.name)
        assert seen.x.shape == seen.x_gradient.shape
        assert seen.y.shape == seen.y_gradient.shape == seen.residual.shape

    with pytest.raises(ZeroDivisionError) if fails else _nothing(), gradients(model, sublayers_of(model), report):
        logits = model(**batch.inputs).logits
        if fails:
            raise ZeroDivisionError
        logits.sum().backward()
    assert names == ([] if fails else [s.name for s in reversed(sublayers_of(model))])
    assert state(model) == before
    assert hook_count(model) == hooks
    assert all(p.grad is None for p in model.parameters())


class _nothing:
    """A context manager that does nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...
