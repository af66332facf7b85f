"""The descent of all matrices of a sublayer, between two least-squares fits of its projection."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import stock_models as stock
import tiny
from cases import ONCE, Case, batch_of, inputs_of, make, reading_of, uneven
from faster_pruner import prune_model
from faster_pruner.costs.budget import Budget
from faster_pruner.errors import OptionError
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Pruned
from faster_pruner.model.lockstep import Lockstep, lockstep
from faster_pruner.model.passes import inference, tensors_in
from faster_pruner.model.reading import find_reading
from faster_pruner.model.spec import bias_of
from faster_pruner.objectives.evaluation import predict
from faster_pruner.options import (
    PRESETS,
    CalibrationOptions,
    Descent,
    Method,
    SolverOptions,
    Switches,
    Weights,
    customise,
)

DEFAULT = PRESETS["default"]
PLAIN = replace(DEFAULT, recovery=Weights(solver=SolverOptions(name="cholesky", ridge=1e-3), align=1e-2))
DESCENDING = replace(PLAIN, recovery=replace(PLAIN.recovery, descent=Descent(epochs=8, tokens_per_step=64, below=1.0)))
ROWS = 120


def calibrated(**changes: Any) -> Calibrated:
    options = CalibrationOptions(tokens_per_batch=150, precision="float32", **changes)
    return calibrate(tiny.make_subject(tiny.make_model()), tiny.make_rows(ROWS), DESCENDING, options)


def distance(dense: Calibrated, model: nn.Module, batches: Any) -> float:
    """Distance of the predictions from the dense model's."""
    objective = dense.subject.objective
    change = predict(model, objective, batches).values - predict(dense.model, objective, batches).values
    return float(np.linalg.norm(change))


def weights(pruned: Pruned) -> dict[str, torch.Tensor]:
    return dict(pruned.model.state_dict())


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_every_sublayer_ends_nearer_to_its_target(share: float) -> None:
    """The same units, and in the first sublayer, which nothing comes before, a smaller residual; so in the end, too."""
    dense = calibrated()
    plain, found = (cut(dense, Budget(macs=share), method) for method in (PLAIN, DESCENDING))
    assert all(torch.equal(plain.masks[name], found.masks[name]) for name in plain.masks)
    assert not any(result.note for result in found.results)
    first = next(i for i, s in enumerate(found.sublayers) if s.units)
    errors = [(p.residual_after, f.residual_after) for p, f in zip(plain.results, found.results, strict=True)]
    assert all(p is not None and f is not None for p, f in errors)
    assert errors[first][1] < 0.97 * errors[first][0]
    assert distance(dense, found.model, dense.data.batches) < 0.9 * distance(dense, plain.model, dense.data.batches)


def test_the_forward_goes_on_with_what_the_branch_has_become() -> None:
    """The residual that is reported is that of the finished model, run from its inputs: nothing ran on old values."""
    dense = calibrated()
    pruned = cut(dense, Budget(macs=0.3), DESCENDING)
    last = next(s for s in reversed(pruned.sublayers) if s.units)
    result = next(r for r in pruned.results if r.name == last.name)
    own = dense.statistics[last.name]
    rest, whole = 0.0, 0.0
    with lockstep(pruned.model, pruned.sublayers, dense.data.batches) as run:
        for sublayer in pruned.sublayers:
            for arrival in run.arrivals(sublayer):
                if sublayer is last:
                    chosen = own.read[arrival.batch]
                    assert arrival.base is not None
                    r = own.targets[arrival.batch] - arrival.base[chosen]
                    own_bias = bias_of(last.projection(pruned.model))
                    y = functional.linear(arrival.x[chosen], last.weight(pruned.model), own_bias)
                    rest, whole = rest + float((y - r).square().sum()), whole + float(r.square().sum())
            if sublayer is last:
                break
    assert result.residual_after == pytest.approx((rest / whole) ** 0.5, rel=1e-3)


def test_same_seed_same_bits_whatever_memory_there_is() -> None:
    """Suspended forwards that were put into files are run again from there."""
    once, twice = (cut(calibrated(memory_limit=limit), Budget(macs=0.3), DESCENDING) for limit in (None, 20_000))
    assert all(torch.equal(tensor, weights(twice)[name]) for name, tensor in weights(once).items())


def test_mild_budgets_have_no_descent_by_default_and_every_budget_has_one_on_request() -> None:
    dense = calibrated()
    strong = replace(PLAIN, recovery=replace(PLAIN.recovery, descent=Descent()))
    mild, plain = (weights(cut(dense, Budget(macs=0.5), method)) for method in (strong, PLAIN))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in mild.items())
    assert isinstance(DEFAULT.recovery, Weights)
    assert DEFAULT.recovery.descent == Descent()
    assert DEFAULT.recovering(0.24, last=True) == DEFAULT
    assert DEFAULT.recovering(0.25, last=True).recovery == replace(DEFAULT.recovery, descent=None)
    assert DEFAULT.recovering(0.1, last=False).recovery == replace(DEFAULT.recovery, descent=None)
    asked = customise(DEFAULT, Switches(descent=True))
    assert asked.recovering(0.9, last=True) == asked
    assert Method.from_dict(asked.to_dict()) == asked
    assert customise(DEFAULT, Switches(descent=False)).recovery == replace(DEFAULT.recovery, descent=None)
    with pytest.raises(OptionError, match="goes with the recovery 'weights', not with 'scale'"):
        customise(PRESETS["kwon2022"], Switches(descent=True))


def test_a_descent_that_diverges_leaves_the_least_squares() -> None:
    dense = calibrated()
    wild = replace(PLAIN, recovery=replace(PLAIN.recovery, descent=Descent(rate=1e4, below=1.0)))
    found, plain = cut(dense, Budget(macs=0.4), wild), cut(dense, Budget(macs=0.4), PLAIN)
    assert all("no descent: it ended with an error of" in r.note for r in found.results if r.units)
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(found).items())


def in_order(name: str, *, pruned: bool) -> Case:
    """A case with its sublayers in the order in which the model runs them."""
    case = make(name)
    case = case.shrunk(uneven(case.sublayers)) if pruned else case
    inputs = inputs_of(name)
    reading = find_reading(
        case.model, case.sublayers, batch_of(inputs), reading_of(lambda returned, batch: tensors_in(returned)[0])
    )
    by_name = {s.name: s for s in case.sublayers}
    return replace(case, sublayers=[by_name[name] for name in reading.order])


def suspended(case: Case, name: str) -> AbstractContextManager[Lockstep]:
    """A lockstep over two batches of a case."""
    batches = [batch_of(inputs_of(name)), batch_of(inputs_of(name, seed=1, rows=5))]
    return lockstep(case.model, case.sublayers, batches, producers=True, branches=True)


@pytest.mark.parametrize("name", ONCE)
def test_branches_run_again_by_themselves(name: str) -> None:
    """Of every family, what is left of a pruned model: the same inputs of the projection, of all rows and of some."""
    case = in_order(name, pruned=True)
    looked_at = 0
    with suspended(case, name) as run:
        for sublayer in case.sublayers:
            if sublayer.aimed:
                run.skip_entry(sublayer)
            seen = {arrival.batch: arrival.x.clone() for arrival in run.arrivals(sublayer)}
            for index, x in seen.items() if sublayer.aimed else ():
                with run.awake(index):
                    torch.testing.assert_close(run.again(index, sublayer), x)
                    places = torch.tensor([2, 0])
                    torch.testing.assert_close(run.again(index, sublayer, places), x[places])
                looked_at += 1
    assert looked_at >= 2


@pytest.mark.parametrize("name", ONCE)
def test_the_forward_goes_on_from_changed_producers(name: str) -> None:
    """What waited at the projection is computed anew: the end is that of a model that always had the new weights."""
    case = in_order(name, pruned=False)
    chosen = next(s for s in case.sublayers if s.aimed)
    with suspended(case, name) as run:
        for sublayer in case.sublayers:
            if sublayer.aimed:
                run.skip_entry(sublayer)
            run.skip(sublayer)
            if sublayer is chosen:
                for producer in sublayer.parts.producers:
                    for parameter in case.model.get_submodule(producer.path).parameters(recurse=False):
                        parameter.detach().mul_(0.7).add_(0.1)
                run.renew(sublayer)
        found = run.finish()
    with inference(case.model):
        wanted = case.model(**inputs_of(name))
    for a, b in zip(tensors_in(found[0]), tensors_in(wanted), strict=True):
        torch.testing.assert_close(a, b)
    original = make(name).model
    with inference(original):
        before = original(**inputs_of(name))
    assert not torch.allclose(tensors_in(before)[0], tensors_in(wanted)[0])


def test_a_branch_that_does_not_run_again_is_left_to_the_least_squares() -> None:
    """What its module does depends on how often it was called."""
    dense = calibrated()
    odd = dense.model.get_submodule("bert.encoder.layer.1.attention")
    calls = count(1)

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0] * (1 + 0.1 * next(calls)), *args[1:])

    handle = odd.register_forward_pre_hook(hook)
    try:
        found = cut(dense, Budget(macs=0.5), DESCENDING)
    finally:
        handle.remove()
    notes = {result.name: result.note for result in found.results}
    assert "no descent: the branch does not run by itself" in notes["layers.1.attention"]
    assert notes["layers.0.ffn"] == ""


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.usefixtures("quick_latency")
def test_decoders_with_a_cache_descend(name: str) -> None:
    """Attention that is called again would add to the keys and values of the first time."""
    model = stock.build(name)
    assert model.config.use_cache
    batches = [stock.inputs_for(model, seed=seed) for seed in range(8)]
    report = prune_model(model, batches, macs=0.2, method=customise(DEFAULT, Switches(descent=True))).report
    assert model.config.use_cache
    assert any(result.residual_after for result in report.sublayers)
    assert not any("does not run by itself" in result.note for result in report.sublayers)
