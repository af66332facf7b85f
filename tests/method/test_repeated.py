"""Layers that run several times in a forward: statistics are summed over the calls, one decision is made for all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AlbertConfig, AutoModelForSequenceClassification

import cases
from cases import Case, batch_of, inputs_of
from faster_pruner import load, prune_model
from faster_pruner.costs.budget import Budget
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.objectives.classification import CLASSIFICATION
from faster_pruner.objectives.objective import Cotangents, Predictions
from faster_pruner.options import CalibrationOptions, Method, SecondOrder, SolverOptions, Weights, preset

CALLS = 3
OPTIONS = CalibrationOptions(precision="float32")
# moments and mask gradients of every row
EVERY_ROW = replace(
    preset("default"),
    selection=replace(SecondOrder(), moment_tokens=None),
    recovery=Weights(solver=SolverOptions(name="cholesky", ridge=1e-7)),
)


def taken(case: Case, method: Method) -> Calibrated:
    batches = [replace(batch_of(inputs_of("repeated", seed=i)), rows=3 * i + torch.arange(3)) for i in range(2)]
    return calibrate(Subject(case.model, case.sublayers, CLASSIFICATION), batches, method, OPTIONS)


def calls_of(case: Case, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, list[tuple[Tensor, Tensor]]]]:
    """The logits, and by sublayer x and y of every call, of plain autograd."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {s.name: [] for s in case.sublayers}

    def hook(name: str) -> Any:
        def keep(module: Any, args: tuple[Tensor], y: Tensor) -> None:
            seen[name].append((args[0], y))

        return keep

    handles = [s.projection(case.model).register_forward_hook(hook(s.name)) for s in case.sublayers]
    logits = case.model(**inputs).logits
    for handle in handles:
        handle.remove()
    return logits, seen


def test_moments_are_sums_over_calls() -> None:
    case = cases.make("repeated")
    found = taken(case, EVERY_ROW)
    expected = {s.name: (torch.zeros(s.columns, s.columns), torch.zeros(s.width, s.width)) for s in case.sublayers}
    cotangents = Cotangents(CLASSIFICATION.likelihood, labelled=False, rows=found.data.rows, seed=0)
    for batch in found.data.batches:
        logits, seen = calls_of(case, batch.inputs)
        start = cotangents.of(Predictions(logits, batch.rows))
        real = batch.inputs["attention_mask"].bool()
        for name, calls in seen.items():
            assert len(calls) == CALLS
            gradients = torch.autograd.grad(logits, [y for _, y in calls], start, retain_graph=True)
            for (x, _), gradient in zip(calls, gradients, strict=True):
                expected[name][0].addmm_(x[real].T, x[real])
                expected[name][1].addmm_(gradient[real].T, gradient[real])
    for s in case.sublayers:
        own = found.statistics[s.name]
        assert own.x is not None
        assert own.y_gradient is not None
        assert own.rows == found.data.rows
        assert torch.allclose(own.x.plain().float(), expected[s.name][0].detach(), rtol=1e-3, atol=1e-3)
        assert torch.allclose(own.y_gradient.plain().float(), expected[s.name][1], rtol=1e-3, atol=1e-5)


def test_mask_gradients_are_sums_over_calls() -> None:
    case = cases.make("repeated")
    found = taken(case, replace(preset("kwon2022"), labels=False))
    for batch in found.data.batches:
        logits, seen = calls_of(case, batch.inputs)
        start = Cotangents(CLASSIFICATION.likelihood, labelled=False, rows=found.data.rows, seed=0).of(
            Predictions(logits, batch.rows)
        )
        real = batch.inputs["attention_mask"].bool()[:, :, None]
        for s in case.sublayers:
            gradients = torch.autograd.grad(logits, [x for x, _ in seen[s.name]], start, retain_graph=True)
            products = [x * g * real for (x, _), g in zip(seen[s.name], gradients, strict=True)]
            units = sum(p.sum(dim=1).unflatten(1, (s.units, s.unit_size)).sum(dim=2) for p in products)
            own = found.statistics[s.name].mask_gradients
            assert own is not None
            assert torch.allclose(own[batch.rows], units.detach(), rtol=1e-3, atol=1e-6)


def test_what_is_left_compensates_in_the_least_squares_sense() -> None:
    case = cases.make("repeated")
    found = taken(case, EVERY_ROW)
    method = replace(EVERY_ROW, round_to=1)
    pruned = cut(found, Budget(macs=0.6), method)
    inputs = [calls_of(case, batch.inputs)[1] for batch in found.data.batches]
    for s, small in zip(case.sublayers, pruned.sublayers, strict=True):
        masks = [batch.inputs["attention_mask"].bool() for batch in found.data.batches]
        x = torch.cat([x[m] for seen, m in zip(inputs, masks, strict=True) for x, _ in seen[s.name]]).detach().double()
        keep = pruned.masks[s.name].repeat_interleave(s.unit_size)
        target = x @ s.weight(case.model).detach().double().T
        biased = s.projection(case.model).bias is not None
        own = torch.cat([x[:, keep], torch.ones(len(x), 1).double()], dim=1) if biased else x[:, keep]
        best = torch.linalg.lstsq(own, target).solution
        rest = (own @ best - target).square().sum()
        weight = small.weight(pruned.model).detach().double()
        shift = pruned.model.get_submodule(s.parts.projection).bias
        value = x[:, keep] @ weight.T
        if biased:
            value = value + (shift - s.projection(case.model).bias).detach().double()
        ours = (value - target).square().sum()
        sliced = (x[:, keep] @ s.weight(case.model).detach().double().T[keep] - target).square().sum()
        assert ours < sliced
        assert ours <= 1.05 * rest + 1e-6


def test_scales_leave_it_alone_and_say_so() -> None:
    case = cases.make("repeated")
    found = taken(case, replace(preset("kwon2022"), labels=False))
    pruned = cut(found, Budget(macs=0.5), replace(preset("kwon2022"), labels=False))
    assert {result.status for result in pruned.results} == {"skipped"}
    assert all("runs 3 times" in result.note for result in pruned.results)


@pytest.mark.filterwarnings("ignore")
def test_albert_whole(tmp_path: Any, quick_latency: None) -> None:
    config = AlbertConfig(
        vocab_size=64,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_hidden_groups=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=2,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(3, 64, (8, 9), generator=generator)} for _ in range(3)]
    result = prune_model(model, [{**b, "attention_mask": torch.ones_like(b["input_ids"])} for b in batches], macs=0.5)
    assert [s.units_before for s in result.report.sublayers] == [4, 48, 4, 48]
    assert result.report.macs_kept <= 0.5
    assert {s.status for s in result.report.sublayers} == {"converged"}
    result.save(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out")(**batches[0]).logits, result.model(**batches[0]).logits)
