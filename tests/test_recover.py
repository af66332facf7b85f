"""Recovery, alone and behind selection and slicing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tiny
from faster_pruner import surgery
from faster_pruner.capture import lockstep
from faster_pruner.costs import encoder_macs
from faster_pruner.errors import BudgetError
from faster_pruner.evaluate import predict
from faster_pruner.families import FAMILIES, family_of
from faster_pruner.linalg import RegressionMoments
from faster_pruner.options import PRESETS, RECOVERIES, SELECTIONS, Budget, CalibrationOptions, Method, SolverOptions
from faster_pruner.pipeline import Calibrated, calibrate_model, cut
from faster_pruner.recover import recover

DEFAULT = PRESETS["default"]
EXACT = replace(DEFAULT, solver=SolverOptions(name="cholesky", ridge=1e-9))


def calibrated(method: Method, family: str = "bert", *, rows: int = 60, labels: int = 2) -> Calibrated:
    model = tiny.make_model(family, labels=labels)
    options = CalibrationOptions(rows=rows, tokens_per_batch=100, precision="float32")
    return calibrate_model(model, family_of(family), tiny.make_rows(rows, labels=labels), method, options)


def distance(dense: Calibrated, model: torch.nn.Module) -> float:
    """Distance of the logits from the dense model's, on the calibration rows."""
    return float((predict(model, dense.data.batches) - dense.statistics.logits).norm())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_nothing_removed_means_nothing_to_recover(family: str) -> None:
    dense = calibrated(EXACT, family)
    model = surgery_copy(dense)
    found = recover(model, dense.sublayers, dense.data.batches, dense.statistics, method=EXACT)
    # errors computed from float32 Grams have a floor near the square root of their rounding
    assert all(s.residual_before < 2e-3 and s.residual_after < 2e-3 for s in found)
    assert distance(dense, model) < 1e-2


def surgery_copy(dense: Calibrated) -> torch.nn.Module:
    import copy

    return copy.deepcopy(dense.model)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_reconstruction_is_a_least_squares_fit_to_the_dense_branch(family: str) -> None:
    """The last sublayer's new weights against lstsq on the stacked design matrix of what it really sees."""
    dense = calibrated(EXACT, family)
    pruned = cut(dense, Budget(macs=0.5), EXACT)
    sublayers = surgery.prune_units(pruned.model, dense.family, {})
    last = sublayers[-1]
    design, target = [], []
    with lockstep(pruned.model, sublayers, dense.data.batches) as run:
        for sublayer in sublayers:
            for arrival, batch_target, read in zip(
                run.arrivals(sublayer),
                dense.statistics[sublayer.name].targets,
                dense.statistics[sublayer.name].read,
                strict=True,
            ):
                if sublayer is last:
                    design.append(arrival.x[read])
                    target.append(batch_target - arrival.residual[read])
    x = torch.cat(design).double()
    x = torch.cat([x, torch.ones(x.shape[0], 1).double()], dim=1)
    r = torch.cat(target).double()
    expected = torch.linalg.lstsq(x, r).solution
    output = last.output_of(pruned.model)
    assert x.shape[0] > x.shape[1]
    fitted = (x @ torch.cat([output.weight.T, output.bias[None]]).double()).detach()
    assert (fitted - r).norm() == pytest.approx(float((x @ expected - r).norm()), rel=1e-3)
    assert pruned.sublayers[-1].residual_after == pytest.approx(float((fitted - r).norm() / r.norm()), rel=1e-2)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_presets_meet_the_budget_and_recovery_helps(preset: str, share: float) -> None:
    method = PRESETS[preset]
    dense = calibrated(method)
    pruned = cut(dense, Budget(macs=share), method)
    alone = cut(dense, Budget(macs=share), replace(method, recovery="none"))
    kept = {s.name: s.units for s in pruned.sublayers}
    assert {s.name: s.units for s in alone.sublayers} == kept
    total = encoder_macs(dense.sublayers, dense.data.length)
    left = encoder_macs(surgery.prune_units(pruned.model, dense.family, {}), dense.data.length)
    assert 0.8 * share < left / total <= share
    if preset == "default":
        assert distance(dense, pruned.model) < distance(dense, alone.model)
        assert all(s.residual_after <= s.residual_before + 1e-3 for s in pruned.sublayers)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("labels", [False, True])
def test_switches_compose_freely(selection: str, recovery: str, labels: bool) -> None:
    from faster_pruner.options import customise

    method = customise(DEFAULT, selection=selection, recovery=recovery, labels=labels)
    pruned = cut(calibrated(method), Budget(macs=0.5), method)
    assert len(pruned.sublayers) == 4
    assert torch.isfinite(pruned.model.classifier.weight).all()


@pytest.mark.parametrize("labels", [1, 3])
def test_regression_and_many_classes(labels: int) -> None:
    for method in PRESETS.values():
        dense = calibrated(method, labels=labels)
        assert torch.isfinite(predict(cut(dense, Budget(macs=0.5), method).model, dense.data.batches)).all()


def test_tiny_budgets_empty_whole_sublayers_and_the_bias_takes_over() -> None:
    for family in FAMILIES:
        dense = calibrated(EXACT, family)
        pruned = cut(dense, Budget(macs=0.02), EXACT)
        empty = [s for s in pruned.sublayers if s.units == 0]
        assert empty
        # one that was emptied in an earlier round has its best bias already
        assert all(s.residual_after <= s.residual_before + 1e-3 for s in empty)
        alone = cut(dense, Budget(macs=0.02), replace(EXACT, recovery="none"))
        assert distance(dense, pruned.model) < distance(dense, alone.model)


def test_fewer_tokens_than_columns_is_still_solved() -> None:
    dense = calibrated(DEFAULT, rows=3)
    pruned = cut(dense, Budget(macs=0.6), DEFAULT)
    assert all(s.status == "converged" for s in pruned.sublayers)
    assert torch.isfinite(predict(pruned.model, dense.data.batches)).all()


def test_constant_and_duplicate_neurons_do_not_break_the_solve() -> None:
    model = tiny.make_model()
    with torch.no_grad():
        up = model.bert.encoder.layer[0].intermediate.dense
        up.weight[3] = up.weight[5]
        up.bias[3] = up.bias[5]
        up.weight[7] = 0.0
    dense = calibrate_model(model, family_of("bert"), tiny.make_rows(60), DEFAULT, CalibrationOptions())
    pruned = cut(dense, Budget(macs=0.9), DEFAULT)
    assert all(s.status == "converged" for s in pruned.sublayers)
    kept = {s.name: s for s in pruned.sublayers}
    assert kept["layers.0.ffn"].residual_after < 0.1


def test_an_extreme_scale_stops_the_reference_and_is_reported() -> None:
    method = replace(PRESETS["li2024"], scale_limit=1e-3)
    found = cut(calibrated(method), Budget(macs=0.6), method).sublayers
    assert [s.status for s in found] == ["skipped", "stopped", "not reached", "not reached"]
    assert "beyond +-0.001" in found[1].note


def test_a_solver_that_fails_falls_back_and_says_so() -> None:
    method = replace(DEFAULT, solver=SolverOptions(name="cg", tolerance=1e-14, max_iterations=1, ridge=1e-3))
    found = cut(calibrated(method), Budget(macs=0.6), method).sublayers
    assert all(s.solver == "cholesky" and "fell back" in s.note for s in found if s.units)


def test_iterative_and_direct_solvers_agree() -> None:
    models = []
    for name in ("cholesky", "jacobi-cg", "cg"):
        method = replace(DEFAULT, solver=SolverOptions(name=name, tolerance=1e-9, max_iterations=5000, ridge=1e-2))
        models.append(predict(cut(calibrated(method), Budget(macs=0.5), method).model, calibrated(method).data.batches))
    assert torch.allclose(models[0], models[1], atol=1e-4)
    assert torch.allclose(models[0], models[2], atol=1e-4)


def test_alignment_brings_the_producers_inputs_closer_to_the_dense_ones() -> None:
    plain = replace(DEFAULT, align=False, rounds=1)
    aligned = replace(plain, align=True)
    for family in FAMILIES:
        dense = calibrated(aligned, family)
        found = cut(dense, Budget(macs=0.4), aligned)
        # the first sublayer reads what it always did; all others are re-aimed
        assert found.sublayers[0].drift_before is None
        assert all(s.drift_after <= s.drift_before for s in found.sublayers[1:] if s.units)
        assert found.sublayers[-1].drift_before > 0
        without = cut(dense, Budget(macs=0.4), plain)
        assert all(s.drift_before is None for s in without.sublayers)
        assert distance(dense, found.model) < 1.05 * distance(dense, without.model)


def test_strong_budgets_are_reached_in_rounds() -> None:
    assert DEFAULT.schedule(0.5) == [0.5]
    assert DEFAULT.schedule(0.16) == pytest.approx([0.4, 0.16])
    three = replace(DEFAULT, rounds=3, rounds_below=1.0)
    assert three.schedule(0.125) == pytest.approx([0.5, 0.25, 0.125])
    for method in (three, replace(three, selection="fisher")):
        dense = calibrated(method)
        pruned = cut(dense, Budget(macs=0.125), method)
        left = encoder_macs(surgery.prune_units(pruned.model, dense.family, {}), dense.data.length)
        assert left <= 0.125 * encoder_macs(dense.sublayers, dense.data.length)
        assert [s.units_before for s in pruned.sublayers] == [3, 40, 3, 40]
        assert [s.name for s in pruned.sublayers] == [s.name for s in dense.sublayers]


def test_alignment_goes_with_weights_and_the_dense_model_only() -> None:
    assert DEFAULT.aligns
    assert not replace(DEFAULT, recovery="scale").aligns
    assert not replace(PRESETS["kwon2022"], align=True).aligns


def test_a_cut_is_reproducible_and_leaves_the_dense_model_alone() -> None:
    dense = calibrated(DEFAULT)
    before = {k: v.clone() for k, v in dense.model.state_dict().items()}
    a, b = (cut(dense, Budget(macs=0.5), DEFAULT).model.state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(torch.equal(before[k], v) for k, v in dense.model.state_dict().items())


def test_a_budget_below_one_unit_is_refused() -> None:
    method = PRESETS["kwon2022"]
    with pytest.raises(BudgetError, match="at least"):
        cut(calibrated(method), Budget(macs=0.001), method)


def test_error_of_the_moments_is_the_direct_error() -> None:
    x, r = torch.randn(40, 5), torch.randn(40, 3)
    moments = RegressionMoments(5, 3, torch.device("cpu"))
    moments.add(x, r)
    weight, bias = torch.randn(3, 5), torch.randn(3)
    direct = (x @ weight.T + bias - r).norm() / r.norm()
    assert moments.error(weight, bias) == pytest.approx(float(direct), rel=1e-4)
