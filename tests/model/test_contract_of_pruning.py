"""The contract of `test_contract`, third part: the whole method works on every family, whatever it consists of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import cases
import tiny
from cases import Case, inputs_of, logits_of
from faster_pruner.costs.budget import Budget, Limit
from faster_pruner.costs.cost import Macs, Parameters, total
from faster_pruner.data.batches import Batch, adopt
from faster_pruner.errors import BudgetError
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.objectives.classification import CLASSIFICATION
from faster_pruner.options import CalibrationOptions, Method, Scale, SolverOptions, preset

OPTIONS = CalibrationOptions(precision="float32")


@pytest.fixture(params=cases.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def rows_for(name: str, case: Case) -> list[Batch]:
    """Batches as users make them, with the model's own answers for labels."""
    made: list[dict[str, Tensor]] = []
    for seed in range(6):
        inputs = inputs_of(name, seed=seed, rows=12, length=8)
        made.append({**inputs, "labels": logits_of(case.model, inputs).argmax(dim=-1)})
    return adopt(made, torch.device("cpu"))


def calibrated(name: str, case: Case, method: Method) -> Calibrated:
    return calibrate(Subject(case.model, case.sublayers, CLASSIFICATION), rows_for(name, case), method, OPTIONS)


def error(model: nn.Module, dense: nn.Module, batches: list[Batch]) -> float:
    """Mean squared difference of the logits."""
    found = [(logits_of(model, b.inputs) - logits_of(dense, b.inputs)).square().mean() for b in batches]
    return float(torch.stack(found).mean())


def test_the_default_method_meets_its_budget_and_recovers(name: str) -> None:
    case = cases.make(name)
    before = copy.deepcopy(case.model.state_dict())
    found = calibrated(name, case, preset("default"))
    assert sorted(s.name for s in found.sublayers) == sorted(s.name for s in case.sublayers)
    pruned = cut(found, Budget(macs=0.6), preset("default"))
    cost = Macs(found.data.lengths)
    assert total(cost, pruned.sublayers) <= 0.6 * total(cost, case.sublayers)
    # what is said of sizes is so: the same units sliced out of the dense model give a model of the same shapes
    sliced = case.shrunk({key: mask.nonzero().flatten() for key, mask in pruned.masks.items()})
    assert sliced.sublayers == pruned.sublayers
    shapes = {key: value.shape for key, value in pruned.model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in sliced.model.state_dict().items()}
    # and recovery makes of it what is nearer to the dense model
    batches = found.data.batches
    assert error(pruned.model, case.model, batches) < error(sliced.model, case.model, batches)
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())


def test_a_strong_budget_is_met_in_two_rounds_or_refused(name: str) -> None:
    case = cases.make(name)
    found = calibrated(name, case, preset("default"))
    if any(s.spec.least for s in case.sublayers):
        with pytest.raises(BudgetError, match="below the smallest model"):
            cut(found, Budget(macs=0.2), preset("default"))
        return
    pruned = cut(found, Budget(macs=0.2), preset("default"))
    cost = Macs(found.data.lengths)
    assert total(cost, pruned.sublayers) <= 0.2 * total(cost, case.sublayers)
    assert [int(pruned.masks[s.name].sum()) for s in pruned.sublayers] == [s.units for s in pruned.sublayers]
    assert bool(logits_of(pruned.model, inputs_of(name)).isfinite().all())


def test_the_published_methods_run(name: str) -> None:
    case = cases.make(name)
    for method in (preset("kwon2022"), preset("li2024")):
        found = calibrated(name, case, method)
        pruned = cut(found, Budget(macs=0.5), method)
        cost = Macs(found.data.lengths)
        assert total(cost, pruned.sublayers) <= 0.5 * total(cost, case.sublayers)
        assert bool(logits_of(pruned.model, inputs_of(name)).isfinite().all())


def test_scales_aimed_at_the_dense_model_recover(name: str) -> None:
    case = cases.make(name)
    plain = Method(
        name="scales",
        labels=False,
        selection=preset("default").selection,
        recovery=Scale(solver=SolverOptions(name="cholesky", ridge=1e-3)),
    )
    found = calibrated(name, case, plain)
    pruned = cut(found, Budget(macs=0.6), plain)
    sliced = case.shrunk({key: mask.nonzero().flatten() for key, mask in pruned.masks.items()})
    for s, t in zip(pruned.sublayers, sliced.sublayers, strict=True):
        if s.units:
            # one number per unit, folded into the columns
            ratio = s.weight(pruned.model) / t.weight(sliced.model)
            units = ratio.unflatten(1, (s.units, s.unit_size))
            assert torch.allclose(units, units[:1, :, :1].expand_as(units), rtol=1e-3)


def test_two_limits_are_met_together(name: str) -> None:
    case = cases.make(name)
    found = calibrated(name, case, preset("default"))
    fixed = Parameters().fixed(case.model, case.sublayers)
    whole = total(Parameters(), case.sublayers)
    limit = Limit(cost="parameters", amount=fixed + 0.45 * whole)
    pruned = cut(found, Budget(macs=0.6, limits=(limit,)), preset("default"))
    cost = Macs(found.data.lengths)
    assert total(cost, pruned.sublayers) <= 0.6 * total(cost, case.sublayers)
    assert sum(p.numel() for p in pruned.model.parameters()) <= fixed + 0.45 * whole


def test_alignment_leaves_producers_alone_that_read_other_things() -> None:
    for name in ("relative", "encoder-decoder"):
        case = cases.make(name)
        found = calibrated(name, case, preset("default"))
        pruned = cut(found, Budget(macs=0.6), preset("default"))
        sliced = case.shrunk({key: mask.nonzero().flatten() for key, mask in pruned.masks.items()})
        changed = {
            p.path
            for s in pruned.sublayers
            if s.units
            for p in s.parts.producers
            for key, value in pruned.model.get_submodule(p.path).state_dict().items()
            if not torch.equal(value, sliced.model.get_submodule(p.path).state_dict()[key])
        }
        aimed = {p.path for s in pruned.sublayers for p in s.aimed}
        assert changed
        assert changed <= aimed
        assert not any(path.startswith("layers.") and path.endswith(("query", "key", "value")) for path in changed)
        assert not any(".cross.key" in path or ".cross.value" in path for path in changed)


def test_rows_and_batches_are_the_same_thing() -> None:
    case, rows = cases.make("bert"), tiny.make_rows(24)
    subject = Subject(case.model, case.sublayers, CLASSIFICATION)
    packed = tiny.make_batches(rows, tokens_per_batch=10**6)
    given = adopt([{**batch.inputs, "labels": batch.labels} for batch in packed], torch.device("cpu"))
    method = preset("kwon2022")
    one = calibrate(subject, rows, method, CalibrationOptions(precision="float32", tokens_per_batch=10**6))
    other = calibrate(subject, given, method, OPTIONS)
    order = packed[0].rows
    for s in case.sublayers:
        ours, theirs = one.statistics[s.name].mask_gradients, other.statistics[s.name].mask_gradients
        assert ours is not None
        assert theirs is not None
        assert torch.allclose(ours[order], theirs, atol=1e-6)
