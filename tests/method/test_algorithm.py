"""The whole method: how often things run, what several budgets share, and that budgets are met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import oracles
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.costs.budget import Bound, Budget, Limit
from faster_pruner.costs.cost import Bytes, Macs, Parameters, total
from faster_pruner.errors import BudgetError
from faster_pruner.method import algorithm, selecting
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Pruned
from faster_pruner.method.selecting import Sizes, bounds_for, select, share_left, sizes_allowed
from faster_pruner.model.precision import copy_of
from faster_pruner.model.spec import Sublayer, bias_of
from faster_pruner.objectives.evaluation import predict
from faster_pruner.options import (
    PRESETS,
    RECOVERIES,
    SELECTIONS,
    CalibrationOptions,
    Fisher,
    Method,
    Rounds,
    SecondOrder,
    Switches,
    customise,
)
from faster_pruner.progress import Silent, StageClock
from faster_pruner.selection.elimination import eliminate
from tiny import CONFIGS, make_batches, make_model, make_rows, make_subject

DEFAULT = PRESETS["default"]
SMALL = CalibrationOptions(tokens_per_batch=64, precision="float32")


def calibrated(method: Method, model: Any = None, *, rows: int = 30, labels: int = 2) -> Calibrated:
    subject = make_subject(make_model(labels=labels) if model is None else model)
    return calibrate(subject, make_rows(rows, labels=labels), method, SMALL)


def distance(dense: Calibrated, model: nn.Module) -> float:
    objective, batches = dense.subject.objective, dense.data.batches
    change = predict(model, objective, batches).values - predict(dense.model, objective, batches).values
    return float((change**2).sum())


def macs_left(dense: Calibrated, pruned: Pruned) -> float:
    """Share of the MACs, at sizes that the modules really have."""
    for s in pruned.sublayers:
        projection: Any = s.projection(pruned.model)
        # what is left of an emptied one has no matrix
        shape = projection.weight.shape if s.units else (projection.out_features, projection.in_features)
        assert shape == (s.width, s.columns)
    cost = Macs(dense.data.lengths)
    return total(cost, pruned.sublayers) / total(cost, dense.sublayers)


class _Counted:
    """A forward hook that counts; copies of the model share it."""

    def __init__(self, name: str, calls: Counter[str]) -> None:
        self.name, self.calls = name, calls

    def __deepcopy__(self, memo: Any) -> _Counted:
        return self

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.calls.update([self.name])


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize(("preset", "models"), [("default", 1), ("li2024", 2), ("kwon2022", 2)])
def test_every_layer_of_teacher_and_student_runs_once_per_budget(family: str, preset: str, models: int) -> None:
    model = make_model(family)
    inside = [path for s in sublayers_of(model) for path in (s.parts.projection, *(p.path for p in s.parts.producers))]
    calls: Counter[str] = Counter()
    for path in inside:
        model.get_submodule(path).register_forward_hook(_Counted(path, calls))
    dense = calibrated(PRESETS[preset], model)
    batches = len(dense.data.batches)
    # a few rows once more, to find out what is read
    assert {calls[path] for path in inside} == {batches + 1}
    for share in (0.7, 0.5):
        calls.clear()
        cut(dense, Budget(macs=share), PRESETS[preset])
        # one student, and for the published presets one half-pruned teacher; the stored targets need no dense forward
        assert all(calls[path] <= models * batches for path in inside)
        assert max(calls.values()) == models * batches


def test_further_budgets_compute_no_curve_and_give_what_they_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    eliminated: list[int] = []

    def counting(gram: Tensor, *args: Any, **options: Any) -> Any:
        eliminated.append(gram.shape[0])
        return eliminate(gram, *args, **options)

    monkeypatch.setattr(selecting, "eliminate", counting)
    both = calibrated(DEFAULT)
    cut(both, Budget(macs=0.8), DEFAULT)
    assert sorted(eliminated) == [24, 24, 40, 40]
    second = cut(both, Budget(macs=0.5, allocation="uniform"), DEFAULT).model.state_dict()
    assert len(eliminated) == 4
    alone = cut(calibrated(DEFAULT), Budget(macs=0.5, allocation="uniform"), DEFAULT).model.state_dict()
    assert all(torch.equal(second[key], value) for key, value in alone.items())
    # another damping is another curve
    eliminated.clear()
    cut(both, Budget(macs=0.5), replace(DEFAULT, selection=SecondOrder(damping=0.1)))
    assert len(eliminated) == 4


@pytest.mark.parametrize("biased", [True, False])
def test_curves_are_the_losses_of_removal_with_the_rest_compensating(biased: bool) -> None:
    """A direct least-squares solve per prefix; the mean of the inputs is free only where a bias absorbs it."""
    model, damping = make_model(), 1e-2
    if not biased:
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.bias = layer.output.dense.bias = None
    dense = calibrated(DEFAULT, model)
    curves = selecting.loss_curves(dense, SecondOrder(damping=damping, block=1))
    for s in dense.sublayers:
        own, curve = dense.statistics[s.name], curves[s.name]
        assert own.x is not None
        assert own.y_gradient is not None
        assert (bias_of(s.projection(dense.model)) is not None) == biased
        count, mean = own.x.count, own.x.total / own.x.count
        gram = own.x.plain() / count - (torch.outer(mean, mean) if biased else 0.0)
        gram += damping * gram.diagonal().mean() * torch.eye(s.columns)
        values, vectors = torch.linalg.eigh(own.y_gradient.plain() / own.rows)
        weighted = s.weight(dense.model).detach().double().T @ (vectors * values.clamp(min=0).sqrt())
        for removed, loss in zip(curve.removed.tolist(), curve.loss.tolist(), strict=True):
            direct = oracles.removal_loss(gram, weighted, curve.order[:removed].tolist(), s.unit_size)
            assert loss == pytest.approx(direct, rel=1e-4, abs=1e-9)


def test_without_curvature_curves_are_what_the_outputs_lose() -> None:
    """A direct least-squares solve per prefix, for the mean square of a token's output; beside the other curves."""
    damping = 1e-2
    dense = calibrated(DEFAULT, make_model())
    usual = selecting.loss_curves(dense, SecondOrder(damping=damping, block=1))
    curves = selecting.loss_curves(dense, SecondOrder(damping=damping, block=1, curvature=False))
    for s in dense.sublayers:
        own, curve = dense.statistics[s.name], curves[s.name]
        assert own.x is not None
        gram = own.x.centred() / own.x.count
        gram += damping * gram.diagonal().mean() * torch.eye(s.columns)
        weight = s.weight(dense.model).detach().double()
        for removed, loss in zip(curve.removed.tolist(), curve.loss.tolist(), strict=True):
            direct = oracles.removal_loss(gram, weight.T, curve.order[:removed].tolist(), s.unit_size)
            assert loss == pytest.approx(direct, rel=1e-4, abs=1e-9)
        assert not torch.allclose(curve.loss[1:], usual[s.name].loss[1:])


@pytest.mark.parametrize("selection", ["second-order", "fisher"])
@pytest.mark.parametrize("allocation", ["free", "bucketed", "uniform", "stock"])
def test_allocations_give_the_sizes_they_promise(selection: str, allocation: Any) -> None:
    method = customise(DEFAULT, Switches(selection=selection))
    dense = calibrated(method, make_model(intermediate_size=48))
    share = 0.7
    pruned = cut(dense, Budget(macs=share, allocation=allocation, round_to=4), method)
    heads = {s.units for s in pruned.sublayers if s.spec.kind == "attention"}
    neurons = {s.units for s in pruned.sublayers if s.spec.kind == "ffn"}
    assert macs_left(dense, pruned) <= share
    assert all(count % 4 == 0 for count in neurons)
    if allocation == "bucketed":
        assert all(count % 8 == 0 for count in neurons)
    if allocation in ("uniform", "stock"):
        assert len(heads) == len(neurons) == 1
    if allocation == "stock":
        assert heads == {3}


def test_a_budget_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(BudgetError, match="ask for at least"):
        cut(calibrated(DEFAULT), Budget(macs=0.2, allocation="stock"), DEFAULT)
    kwon = PRESETS["kwon2022"]
    with pytest.raises(BudgetError, match="at least"):
        cut(calibrated(kwon), Budget(macs=0.001), kwon)


@pytest.mark.parametrize("share", [0.6, 0.2])
def test_masks_say_which_dense_units_are_left(share: float) -> None:
    method = replace(DEFAULT, recovery=None)
    dense = calibrated(method)
    pruned = cut(dense, Budget(macs=share), method)
    smaller = {s.name: s for s in pruned.sublayers}
    for s in dense.sublayers:
        columns = pruned.masks[s.name].repeat_interleave(s.unit_size)
        assert torch.equal(smaller[s.name].weight(pruned.model), s.weight(dense.model)[:, columns])


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_presets_meet_the_budget_and_recovery_helps(preset: str, share: float) -> None:
    method = PRESETS[preset]
    dense = calibrated(method, rows=60)
    pruned = cut(dense, Budget(macs=share), method)
    alone = cut(dense, Budget(macs=share), replace(method, recovery=None))
    assert [s.units for s in alone.sublayers] == [s.units for s in pruned.sublayers]
    assert [r.units for r in pruned.results] == [s.units for s in pruned.sublayers]
    assert all(r.status == "skipped" and r.residual_after is None for r in alone.results)
    assert 0.8 * share < macs_left(dense, pruned) <= share
    if preset == "default":
        assert distance(dense, pruned.model) < distance(dense, alone.model)
        assert all(r.residual_after <= r.residual_before + 1e-3 for r in pruned.results)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("labels", [False, True])
def test_switches_compose_freely(selection: str, recovery: str, labels: bool) -> None:
    method = customise(DEFAULT, Switches(selection=selection, recovery=recovery, labels=labels))
    pruned = cut(calibrated(method), Budget(macs=0.5), method)
    assert len(pruned.results) == 4
    assert all(torch.isfinite(value).all() for value in pruned.model.state_dict().values())


@pytest.mark.parametrize("labels", [1, 3, 40])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_regression_and_many_classes(labels: int, preset: str) -> None:
    dense = calibrated(PRESETS[preset], labels=labels)
    pruned = cut(dense, Budget(macs=0.5), PRESETS[preset])
    values = predict(pruned.model, dense.subject.objective, dense.data.batches).values
    assert values.shape == (30, labels)
    assert abs(values).max() < 1e3


def test_a_cut_is_reproducible_and_leaves_the_dense_model_alone() -> None:
    dense = calibrated(DEFAULT)
    before = {k: v.clone() for k, v in dense.model.state_dict().items()}
    a, b = (cut(dense, Budget(macs=0.2), DEFAULT).model.state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(torch.equal(before[k], v) for k, v in dense.model.state_dict().items())


class Overhead:
    """A cost that a layer has however small it is: most of what it takes."""

    name = "time"

    def of(self, sublayer: Sublayer, keeps: Tensor) -> Tensor:
        return (keeps > 0).double() * 0.6 + 0.4 * keeps.double() / (3 if sublayer.spec.mixes_tokens else 40)

    def fixed(self, model: nn.Module, sublayers: Sequence[Sublayer]) -> float:
        return 0.0


def test_a_budget_is_as_strong_as_it_leaves_few_macs() -> None:
    """Six tenths of the time may be four of the MACs: then rounds and descent are those of a strong budget."""
    method = replace(DEFAULT, round_to=1, rounds=Rounds(count=2, below=0.5))
    dense = calibrated(method)
    budget = Budget(limits=(Limit(cost=Overhead(), share=0.6),))
    bounds, sizes = bounds_for(dense, budget), sizes_allowed(dense.sublayers, budget, method)
    selection = select(dense, method, bounds, sizes)
    macs = Macs(dense.data.lengths)
    kept = [float(macs.of(s, torch.tensor([selection[s.name].numel()]))[0]) for s in dense.sublayers]
    left = sum(kept) / total(macs, dense.sublayers)
    assert left < 0.45
    assert share_left(dense, method, bounds, sizes) == pytest.approx(left)
    clock = StageClock(Silent())
    cut(dense, budget, method, clock=clock)
    assert "statistics" in clock.seconds
    # of a budget that says itself how many MACs are left, that counts
    both = Budget(macs=0.9, limits=budget.limits)
    assert share_left(dense, method, bounds_for(dense, both), sizes) == pytest.approx(0.6)


@pytest.mark.parametrize("selection", [SecondOrder(), Fisher()])
def test_strong_budgets_are_reached_in_rounds(selection: SecondOrder | Fisher, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def watching(calibrated: Calibrated, method: Method, bounds: Sequence[Bound], sizes: Sizes) -> Any:
        asked.append(bounds[0].most)
        return selecting.select(calibrated, method, bounds, sizes)

    monkeypatch.setattr(algorithm, "select", watching)
    three = replace(DEFAULT, selection=selection, rounds=Rounds(count=3, below=1.0))
    dense = calibrated(three)
    whole = total(Macs(dense.data.lengths), dense.sublayers)
    pruned = cut(dense, Budget(macs=0.125), three)
    assert [most / whole for most in asked] == pytest.approx([0.5, 0.25, 0.125])
    assert macs_left(dense, pruned) <= 0.125
    assert [r.units_before for r in pruned.results] == [3, 40, 3, 40]
    assert [r.name for r in pruned.results] == [s.name for s in dense.sublayers]
    asked.clear()
    # as the default has it: two rounds below a quarter
    two = replace(three, rounds=DEFAULT.rounds)
    cut(dense, Budget(macs=0.5), two)
    cut(dense, Budget(macs=0.2), two)
    assert [most / whole for most in asked] == pytest.approx([0.5, 0.2**0.5, 0.2])


@pytest.mark.parametrize("preset", ["default", "kwon2022"])
@pytest.mark.parametrize(("macs", "parameters"), [(0.5, 0.97), (0.9, 0.7), (0.5, 0.7), (0.2, 0.6)])
def test_two_limits_are_met_together(preset: str, macs: float, parameters: float) -> None:
    method = PRESETS[preset]
    dense = calibrated(method)
    pruned = cut(dense, Budget(macs=macs, limits=(Limit(cost="parameters", share=parameters),)), method)
    counts = [sum(p.numel() for p in model.parameters()) for model in (pruned.model, dense.model)]
    shares = macs_left(dense, pruned) / macs, counts[0] / counts[1] / parameters
    assert max(shares) <= 1
    # and one of them is spent
    assert max(shares) > 0.9
    assert counts[1] - counts[0] == total(Parameters(), dense.sublayers) - total(Parameters(), pruned.sublayers)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_limit_on_bytes_is_an_amount_of_the_file(stored: torch.dtype, tmp_path: Path) -> None:
    subject = replace(make_subject(make_model()), dtype=stored)
    dense = calibrate(subject, make_rows(30), DEFAULT, SMALL)
    size = stored.itemsize * sum(p.numel() for p in dense.model.parameters())
    most = size - 0.4 * total(Bytes(stored.itemsize), dense.sublayers)
    pruned = cut(dense, Budget(limits=(Limit(cost="bytes", amount=most),)), DEFAULT)
    save_file(
        dict(copy_of(pruned.model, dtype=stored).named_parameters()), tmp_path / "w.safetensors", {"format": "pt"}
    )
    assert 0.95 * most < (tmp_path / "w.safetensors").stat().st_size <= most


@pytest.mark.parametrize("factor", [1, 2])
def test_batches_of_ones_own_are_differentiated_until_there_are_tokens_enough(factor: int) -> None:
    rows = make_rows(30)
    made = [replace(batch, differentiated=True) for batch in make_batches(rows, 60)]
    subject = make_subject(make_model())
    subject = replace(subject, objective=replace(subject.objective, moment_factor=factor))
    dense = calibrate(subject, made, replace(DEFAULT, selection=SecondOrder(moment_tokens=2)), SMALL)
    tokens = [int(batch.inputs["attention_mask"].sum()) for batch in made]
    flags = [batch.differentiated for batch in dense.data.batches]
    # two tokens for each of the 40 neurons, times the factor
    assert flags == [sum(tokens[:i]) < 80 * factor for i in range(len(made))]
    assert 0 < sum(flags) < len(flags)
    assert dense.data.lengths == {"layers": sum(rows.lengths) / 30}
