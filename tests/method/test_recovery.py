"""Recovery against direct least squares on what the pruned model and its target really compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from faster_pruner.costs.budget import Budget
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Pruned
from faster_pruner.method.recovery import recover
from faster_pruner.model.spec import Sublayer, bias_of
from faster_pruner.objectives.evaluation import predict
from faster_pruner.options import (
    PRESETS,
    CalibrationOptions,
    Fisher,
    Method,
    Rounds,
    Scale,
    SecondOrder,
    SolverOptions,
    Weights,
)

DEFAULT = PRESETS["default"]
EXACTLY = SolverOptions(name="cholesky", ridge=1e-9)
EXACT = replace(DEFAULT, recovery=Weights(solver=EXACTLY, align=1e-2))
ROWS = 60
# In BERT, what goes into the normalisation after a branch: the branch plus what it is added to.
NORMS = {"attention": "attention.output.LayerNorm", "ffn": "output.LayerNorm"}


def calibrated(method: Method, model: Any = None, *, rows: int = ROWS, labels: int = 2) -> Calibrated:
    options = CalibrationOptions(tokens_per_batch=100, precision="float32")
    subject = tiny.make_subject(tiny.make_model(labels=labels) if model is None else model)
    return calibrate(subject, tiny.make_rows(rows, labels=labels), method, options)


def distance(dense: Calibrated, model: nn.Module) -> float:
    """Distance of the predictions from the dense model's, on the calibration rows."""
    objective, batches = dense.subject.objective, dense.data.batches
    change = predict(model, objective, batches).values - predict(dense.model, objective, batches).values
    return float(np.linalg.norm(change))


@dataclass(frozen=True)
class Seen:
    """Of one sublayer, over the tokens it is fitted on: X [T, n], its output Y [T, d], and base + Y [T, d]."""

    x: Tensor
    y: Tensor
    joined: Tensor


def look(model: nn.Module, sublayers: Sequence[Sublayer], *, all_but_last: bool = False) -> dict[str, Seen]:
    """Run BERT on every row alone. Of the second layer's tokens the first is read."""
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {s.name: [] for s in sublayers}
    here: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for s in sublayers:
        whole = s.layer == 0 or (all_but_last and s is not sublayers[-1])

        def projected(module: nn.Module, args: tuple[Tensor, ...], y: Tensor, name: str = s.name) -> None:
            here[name] = (args[0][0], y[0])

        def joined(module: nn.Module, args: tuple[Tensor, ...], name: str = s.name, whole: bool = whole) -> None:
            x, y = here[name]
            every = (x, y, args[0][0])
            found[name].append(every if whole else tuple(part[:1] for part in every))

        handles.append(s.projection(model).register_forward_hook(projected))
        norm = model.get_submodule(s.prefix + NORMS[s.spec.kind])
        handles.append(norm.register_forward_pre_hook(joined))
    with torch.no_grad():
        for row in tiny.make_rows(ROWS).tokens:
            model(input_ids=torch.tensor([row["input_ids"]]))
    for handle in handles:
        handle.remove()
    return {
        name: Seen(*(torch.cat(parts).double() for parts in zip(*rows, strict=True))) for name, rows in found.items()
    }


def without_biases(model: Any, *, producers: bool = False) -> Any:
    """The same model without biases in its output projections, or in what feeds them."""
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        own = [attention.query, attention.key, attention.value, layer.intermediate.dense]
        for module in own if producers else [layer.attention.output.dense, layer.output.dense]:
            module.bias = None
    return model


def by_least_squares(x: Tensor, r: Tensor, *, intercept: bool) -> Tensor:
    """What is left of r [T, d] after the best fit by x [T, n], directions of x that are rounding alone left out."""
    design = torch.cat([x, torch.ones(len(x), 1).double()], dim=1) if intercept else x
    return design @ torch.linalg.lstsq(design, r, rcond=1e-6, driver="gelsd").solution - r


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("share", [0.6, 0.15])
def test_reconstruction_is_the_least_squares_fit_to_the_dense_branch(biased: bool, share: float) -> None:
    """Every sublayer, in one round and in two; with an intercept where there is a bias to take it, else without."""
    model = tiny.make_model() if biased else without_biases(tiny.make_model())
    dense = calibrated(EXACT, model)
    pruned = cut(dense, Budget(macs=share), EXACT)
    aims, now = look(dense.model, dense.sublayers), look(pruned.model, pruned.sublayers)
    told_apart = 0
    for s, result in zip(pruned.sublayers, pruned.results, strict=True):
        own = now[s.name]
        r = aims[s.name].joined - (own.joined - own.y)
        left = (own.y - r).norm()
        best = by_least_squares(own.x, r, intercept=biased).norm()
        assert left <= best * (1 + 1e-3) + 1e-3 * r.norm()
        assert result.residual_after == pytest.approx(float(left / r.norm()), rel=1e-2, abs=1e-3)
        # the fit of the other kind would have been seen
        x, mean = own.x, own.x.mean(dim=0)
        centred = torch.linalg.lstsq(x - mean, r - r.mean(dim=0)).solution if s.units else x.new_zeros(0, s.width)
        told_apart += bool((x @ centred - r).norm() > 1.05 * best)
        assert (s.projection(pruned.model).bias is not None) == biased
    assert biased or told_apart


def aims_of(dense: Calibrated, half: Pruned, *, every: bool, whole: bool) -> dict[str, Tensor]:
    """What a teacher's branches make of the model; `whole`: in feed-forward layers with all of the dense neurons."""
    found = look(half.model, half.sublayers, all_but_last=every)
    aims = {name: seen.joined for name, seen in found.items()}
    for s in half.sublayers if whole else ():
        if s.spec.kind == "ffn":
            layer: Any = dense.model.get_submodule(s.prefix.removesuffix("."))
            base = found[s.name].joined - found[s.name].y
            with torch.no_grad():
                aims[s.name] = base + layer.output.dense(layer.intermediate(base.float())).double()
    return aims


@pytest.mark.parametrize(("teacher", "whole"), [("sqrt", False), ("sqrt", True), ("dense", False)])
def test_mask_tuning_is_the_least_squares_fit_of_one_scale_per_unit(teacher: Any, whole: bool) -> None:
    """As Kwon et al. 2022: in order, aimed at a model pruned to the square root of the budget."""
    recovery = Scale(solver=EXACTLY, teacher=teacher, read_tokens_only=False, whole_targets=whole)
    method = Method(name="t", labels=True, selection=Fisher(batch=8), recovery=recovery)
    dense = calibrated(method)
    pruned = cut(dense, Budget(macs=0.5), method)
    alone = replace(method, recovery=None)
    half = (
        cut(dense, Budget(macs=0.5**0.5), alone) if teacher == "sqrt" else Pruned(dense.model, dense.sublayers, [], {})
    )
    # whose targets are kept for the tokens that are read alone
    every = teacher == "sqrt"
    aims = aims_of(dense, half, every=every, whole=whole)
    now = look(pruned.model, pruned.sublayers, all_but_last=every)
    before = cut(dense, Budget(macs=0.5), alone).model
    for s, result in zip(pruned.sublayers, pruned.results, strict=True):
        weight, bias = s.weight(before).detach().double(), s.projection(before).bias.detach().double()
        own = now[s.name]
        r = aims[s.name] - (own.joined - own.y) - bias
        parts = [
            own.x[:, c : c + s.unit_size] @ weight[:, c : c + s.unit_size].T for c in range(0, s.columns, s.unit_size)
        ]
        design = torch.stack([part.flatten() for part in parts], dim=1)
        scales = torch.linalg.lstsq(design, r.flatten()[:, None]).solution[:, 0]
        tuned = weight * scales.repeat_interleave(s.unit_size)
        assert torch.allclose(s.weight(pruned.model).double(), tuned, rtol=1e-2, atol=1e-3), s.name
        assert torch.equal(s.projection(pruned.model).bias.double(), bias)
        assert result.residual_after <= result.residual_before + 1e-3


def test_the_teacher_of_the_reference_is_not_rearranged_and_has_any_number_of_units() -> None:
    """Its target in words: the branch of a model that the search alone has pruned to the square root of the budget."""
    kwon = PRESETS["kwon2022"]
    assert isinstance(kwon.recovery, Scale)
    exact = replace(kwon, recovery=replace(kwon.recovery, solver=EXACTLY, limit=None, skip_first=False))
    dense = calibrated(exact)
    found = cut(dense, Budget(macs=0.4, round_to=8), exact)
    assert isinstance(kwon.selection, Fisher)
    plain = replace(exact, recovery=None, selection=replace(kwon.selection, rearrange=False))
    half = cut(dense, Budget(macs=0.4**0.5), plain)
    turned = cut(dense, Budget(macs=0.4**0.5), replace(exact, recovery=None))
    assert any(not torch.equal(mask, turned.masks[name]) for name, mask in half.masks.items())
    assert [s.units for s in half.sublayers] != [s.units for s in found.sublayers]
    aims = aims_of(dense, half, every=True, whole=kwon.recovery.whole_targets)
    now = look(found.model, found.sublayers, all_but_last=True)
    for s, result in zip(found.sublayers, found.results, strict=True):
        own = now[s.name]
        r = aims[s.name] - (own.joined - own.y)
        assert result.residual_after == pytest.approx(float((own.y - r).norm() / r.norm()), rel=1e-2), s.name


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_nothing_removed_means_nothing_to_recover(family: str) -> None:
    dense = calibrated(EXACT, tiny.make_model(family))
    network = dense.network.copied()
    found = recover(network, dense.data, dense.statistics, method=EXACT)
    # errors computed from float32 Grams have a floor near the square root of their rounding
    assert all(s.residual_before < 2e-3 and s.residual_after < 2e-3 for s in found)
    assert distance(dense, network.model) < 1e-2


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_tiny_budgets_empty_whole_sublayers_and_the_bias_takes_over(family: str) -> None:
    dense = calibrated(EXACT, tiny.make_model(family))
    pruned = cut(dense, Budget(macs=0.02), EXACT)
    empty = [s for s in pruned.results if s.units == 0]
    assert empty
    # one that was emptied in an earlier round has its best bias already
    assert all(s.residual_after <= s.residual_before + 1e-3 for s in empty)
    alone = cut(dense, Budget(macs=0.02), replace(EXACT, recovery=None))
    assert distance(dense, pruned.model) < distance(dense, alone.model)


def test_fewer_tokens_than_columns_is_still_solved() -> None:
    dense = calibrated(DEFAULT, rows=3)
    pruned = cut(dense, Budget(macs=0.6), DEFAULT)
    assert all(s.status == "converged" for s in pruned.results)
    assert all(torch.isfinite(value).all() for value in pruned.model.state_dict().values())


def test_constant_and_duplicate_neurons_do_not_break_the_solve() -> None:
    model: Any = tiny.make_model()
    with torch.no_grad():
        up = model.bert.encoder.layer[0].intermediate.dense
        up.weight[3] = up.weight[5]
        up.bias[3] = up.bias[5]
        up.weight[7] = 0.0
    pruned = cut(calibrated(DEFAULT, model), Budget(macs=0.9), DEFAULT)
    assert all(s.status == "converged" for s in pruned.results)
    assert {s.name: s for s in pruned.results}["layers.0.ffn"].residual_after < 0.1


def test_an_extreme_scale_stops_the_reference_and_is_reported() -> None:
    method = PRESETS["li2024"]
    assert isinstance(method.recovery, Scale)
    method = replace(method, recovery=replace(method.recovery, limit=1e-3))
    found = cut(calibrated(method), Budget(macs=0.6), method).results
    assert [s.status for s in found] == ["skipped", "stopped", "not reached", "not reached"]
    assert "beyond +-0.001" in found[1].note


def with_solver(**options: Any) -> Method:
    assert isinstance(DEFAULT.recovery, Weights)
    return replace(DEFAULT, recovery=replace(DEFAULT.recovery, solver=SolverOptions(**options)))


def test_a_solver_that_fails_falls_back_and_says_so() -> None:
    method = with_solver(name="cg", tolerance=1e-14, max_iterations=1, ridge=1e-3)
    found = cut(calibrated(method), Budget(macs=0.6), method).results
    assert all(s.solver == "cholesky" and "fell back" in s.note for s in found if s.units)


def test_iterative_and_direct_solvers_agree() -> None:
    values = []
    for name in ("cholesky", "jacobi-cg", "cg"):
        method = with_solver(name=name, tolerance=1e-9, max_iterations=5000, ridge=1e-2)
        dense = calibrated(method)
        pruned = cut(dense, Budget(macs=0.5), method)
        values.append(predict(pruned.model, dense.subject.objective, dense.data.batches).values)
    assert abs(values[0] - values[1]).max() < 1e-4
    assert abs(values[0] - values[2]).max() < 1e-4


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_alignment_brings_the_producers_inputs_closer_to_the_dense_ones(family: str) -> None:
    assert isinstance(DEFAULT.recovery, Weights)
    aligned = replace(DEFAULT, rounds=Rounds(count=1))
    plain = replace(aligned, recovery=replace(DEFAULT.recovery, align=None))
    dense = calibrated(aligned, tiny.make_model(family))
    found = cut(dense, Budget(macs=0.4), aligned)
    # the first sublayer reads what it always did; all others are re-aimed
    assert found.results[0].drift_before is None
    assert all(s.drift_after <= s.drift_before for s in found.results[1:] if s.units)
    assert found.results[-1].drift_before > 0
    without = cut(dense, Budget(macs=0.4), plain)
    assert all(s.drift_before is None for s in without.results)
    assert distance(dense, found.model) < 1.05 * distance(dense, without.model)


def fed(model: nn.Module, pruned: Pruned) -> dict[str, tuple[Tensor, Tensor]]:
    """By path of the producers of BERT's sublayers: what they are given and what they make of it, token by token."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for s in pruned.sublayers:
        # what mixes tokens needs all of them
        whole = s.layer == 0 or s.spec.mixes_tokens
        for producer in s.parts.producers:

            def keep(
                module: nn.Module, args: tuple[Tensor, ...], y: Tensor, path: str = producer.path, whole: bool = whole
            ) -> None:
                tokens = slice(None) if whole else slice(1)
                found.setdefault(path, []).append((args[0][0, tokens], y[0, tokens]))

            handles.append(model.get_submodule(producer.path).register_forward_hook(keep))
    with torch.no_grad():
        for row in tiny.make_rows(ROWS).tokens:
            model(input_ids=torch.tensor([row["input_ids"]]))
    for handle in handles:
        handle.remove()
    return {path: tuple(torch.cat(part).double() for part in zip(*seen, strict=True)) for path, seen in found.items()}


@pytest.mark.parametrize("biased", [True, False])
def test_producers_are_fitted_to_what_they_made_in_the_dense_model(biased: bool) -> None:
    """Least squares on their present inputs, with an offset where they have a bias to take it."""
    model = tiny.make_model() if biased else without_biases(tiny.make_model(), producers=True)
    method = replace(
        EXACT, rounds=Rounds(count=1), selection=SecondOrder(), recovery=Weights(solver=EXACTLY, align=1e-6)
    )
    dense = calibrated(method, model)
    pruned = cut(dense, Budget(macs=0.5), method)
    aims, now = fed(dense.model, pruned), fed(pruned.model, pruned)
    for s in pruned.sublayers[1:]:
        assert s.units > 0
        kept = pruned.masks[s.name].repeat_interleave(s.unit_size)
        for producer in s.parts.producers:
            x, y = now[producer.path]
            target = aims[producer.path][1][:, kept]
            best = by_least_squares(x, target, intercept=biased).norm()
            assert best > 0.01 * target.norm()
            assert (y - target).norm() <= best * (1 + 1e-4)
            assert (bias_of(pruned.model.get_submodule(producer.path)) is not None) == biased


def test_alignment_goes_with_weights_and_the_dense_model_only() -> None:
    assert DEFAULT.align is not None
    assert replace(DEFAULT, recovery=None).align is None
    assert PRESETS["kwon2022"].align is None
    assert [m.aims_at_dense for m in (DEFAULT, PRESETS["kwon2022"], replace(DEFAULT, recovery=None))] == [
        True,
        False,
        False,
    ]
