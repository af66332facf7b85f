"""The statistics pass against per-example autograd and direct sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import oracles
import tiny
from faster_pruner.batches import Batch, pack, rows_with
from faster_pruner.calibrate import Needs, Statistics, calibrate
from faster_pruner.capture import inference
from faster_pruner.families import FAMILIES, family_of, resolve
from faster_pruner.losses import labelled, problem_of, true_fisher

EVERYTHING = Needs(mask_gradients=True, moments=True, targets=True)


def take(family: str = "bert", *, tokens_per_batch: int = 40, labels: int = 2) -> Statistics:
    model, rows = tiny.make_model(family, labels=labels), tiny.make_rows(labels=labels)
    batches = tiny.make_batches(rows, tokens_per_batch)
    cotangent = labelled(problem_of(model.config))
    return calibrate(model, resolve(model, family_of(family)), batches, cotangent, needs=EVERYTHING)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_mask_gradients_are_per_example_autograd(family: str) -> None:
    model, rows = tiny.make_model(family), tiny.make_rows()
    sublayers = resolve(model, family_of(family))
    statistics = calibrate(
        model, sublayers, tiny.make_batches(rows), labelled("single_label_classification"), needs=EVERYTHING
    )
    tokens = [row["input_ids"] for row in rows.tokens]
    with inference(model):
        logits = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in tokens])
    assert torch.allclose(statistics.logits, logits, atol=1e-5)
    cotangents = logits.softmax(-1) - torch.nn.functional.one_hot(torch.tensor(rows.labels), 2)
    expected = oracles.per_example_mask_gradients(model, sublayers, tokens, cotangents)
    for name, gradient in expected.items():
        found = statistics[name].mask_gradients
        assert found is not None
        assert torch.allclose(found, gradient, atol=1e-5, rtol=1e-3), name


def test_the_gradient_is_that_of_the_loss() -> None:
    """Cross entropy and squared error by autograd, against the closed-form cotangents."""
    for labels in (1, 2, 4):
        model, rows = tiny.make_model(labels=labels), tiny.make_rows(labels=labels)
        batch = tiny.make_batches(rows, 1000)[0]
        logits = model(**batch.inputs).logits.detach().requires_grad_()
        if labels == 1:
            loss = (logits[:, 0] - batch.labels).square().sum()
        else:
            loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        (expected,) = torch.autograd.grad(loss, logits)
        assert torch.allclose(labelled(problem_of(model.config))(logits, batch), expected, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5, 40])
def test_true_fisher_direction_has_the_softmax_covariance(classes: int) -> None:
    draws = 60_000 if classes > 2 else 4
    logits = torch.randn(1, classes)
    p = logits.softmax(-1)[0]
    batch = tiny.make_batches(tiny.make_rows(1), 1000)[0]
    expected = torch.diag(p) - torch.outer(p, p)
    many = logits.expand(draws, classes)
    rows = type(batch)(inputs=batch.inputs, rows=torch.arange(draws), labels=None)
    v = true_fisher("single_label_classification", rows=draws, seed=0)(many, rows)
    covariance = v.T @ v / draws
    assert torch.allclose(covariance, expected, atol=1e-6 if classes == 2 else 0.02)


def test_true_fisher_of_two_classes_is_exact_per_example() -> None:
    batch = tiny.make_batches(tiny.make_rows(), 1000)[0]
    logits = torch.randn(12, 2)
    p = logits.softmax(-1)
    gap = (p[:, 0] * p[:, 1]).sqrt()[:, None] * torch.tensor([1.0, -1.0])
    v = true_fisher("single_label_classification", rows=12, seed=3)(logits, batch)
    assert torch.allclose(v * v[:, :1].sign(), gap, atol=1e-5)


def test_random_signs_belong_to_rows_not_batches() -> None:
    rows = tiny.make_rows(labels=1)
    logits = torch.zeros(12, 3)
    found = {}
    for tokens in (20, 1000):
        cotangent = true_fisher("multi_label_classification", rows=12, seed=1)
        out = torch.zeros(12, 3)
        for batch in tiny.make_batches(rows, tokens):
            out[batch.rows] = cotangent(logits[batch.rows], batch)
        found[tokens] = out
    assert torch.equal(found[20], found[1000])
    assert torch.allclose(found[20].abs(), torch.full((12, 3), 0.5))


def test_results_do_not_depend_on_the_packing() -> None:
    small, large = take(tokens_per_batch=12), take(tokens_per_batch=1000)
    for name, a in small.sublayers.items():
        b = large[name]
        assert torch.allclose(a.mask_gradients, b.mask_gradients, atol=1e-5)
        assert torch.allclose(a.inputs.gram, b.inputs.gram, rtol=1e-4, atol=1e-4)
        assert torch.allclose(a.output_gradients.gram, b.output_gradients.gram, rtol=1e-4, atol=1e-4)
        assert a.inputs.count == b.inputs.count


def test_padding_never_counts_and_the_last_layer_reads_one_token() -> None:
    rows = tiny.make_rows()
    statistics = take()
    assert statistics["layers.0.attention"].inputs.count == sum(rows.lengths)
    assert statistics["layers.0.ffn"].inputs.count == sum(rows.lengths)
    assert statistics["layers.1.attention"].inputs.count == len(rows)
    assert statistics["layers.1.ffn"].inputs.count == len(rows)
    for read in statistics["layers.1.ffn"].read:
        assert read[:, 0].all()
        assert not read[:, 1:].any()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_that_run_forward_only_give_targets_and_nothing_else(family: str) -> None:
    model, rows, first = tiny.make_model(family), tiny.make_rows(30), 11
    sublayers = resolve(model, family_of(family))
    cotangent = true_fisher("single_label_classification", rows=30, seed=0)
    needs = Needs(moments=True, targets=True, producer_inputs=True)

    def taken(batches: list[Batch]) -> Statistics:
        return calibrate(model, sublayers, batches, cotangent, needs=needs)

    batches = pack(rows, tokens_per_batch=40, device=torch.device("cpu"), differentiated=first)
    found = taken(batches)
    whole = taken([replace(batch, differentiated=True) for batch in batches])
    part = taken([batch for batch in batches if batch.differentiated])
    assert torch.equal(found.logits, whole.logits)
    for sublayer in sublayers:
        own, all_rows = found[sublayer.name], whole[sublayer.name]
        for mine, other in ((own.targets, all_rows.targets), (own.read, all_rows.read)):
            assert len(mine) == len(batches)
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
        # of the last layer the loss reads one token per row: every row counts there
        last = sublayer.layer == 1
        expected = all_rows if last else part[sublayer.name]
        assert own.rows == (30 if last else first)
        assert torch.allclose(own.inputs.gram, expected.inputs.gram, rtol=1e-5, atol=1e-5)
        assert torch.allclose(own.output_gradients.gram, expected.output_gradients.gram, rtol=1e-4, atol=1e-7)
        assert len(own.producer_inputs) == len(expected.producer_inputs)
        assert all(torch.equal(a, b) for a, b in zip(own.producer_inputs, expected.producer_inputs, strict=True))


def test_which_rows_are_differentiated_does_not_depend_on_the_packing() -> None:
    rows = tiny.make_rows(30)
    for tokens in (12, 1000):
        batches = pack(rows, tokens_per_batch=tokens, device=torch.device("cpu"), differentiated=11)
        flags = [batch.differentiated for batch in batches]
        assert flags == sorted(flags, reverse=True)
        chosen = [int(i) for batch in batches if batch.differentiated for i in batch.rows]
        assert sorted(chosen) == list(range(11))
        assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(30))


def test_rows_with_so_many_tokens() -> None:
    rows = tiny.make_rows(30)
    for tokens in (1, rows.lengths[0], rows.lengths[0] + 1, sum(rows.lengths) - 1, 10_000):
        count = rows_with(rows, tokens)
        assert count == 30 or sum(rows.lengths[:count]) >= tokens
        assert sum(rows.lengths[: count - 1]) < tokens


def test_packing_is_sorted_and_bounded() -> None:
    rows = tiny.make_rows(30)
    batches = pack(rows, tokens_per_batch=33, device=torch.device("cpu"))
    widths = [batch.inputs["input_ids"].shape for batch in batches]
    assert all(b * s <= 33 or b == 1 for b, s in widths)
    assert [s for _, s in widths] == sorted((s for _, s in widths), reverse=True)
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(30))
    for batch in batches:
        assert batch.mask.sum(dim=1).tolist() == [rows.lengths[i] for i in batch.rows.tolist()]


@pytest.mark.parametrize(("labels", "problem"), [(1, "regression"), (3, "single_label_classification")])
def test_problem_of(labels: int, problem: str) -> None:
    assert problem_of(tiny.make_model(labels=labels).config) == problem
    assert problem_of(tiny.make_model(problem_type="multi_label_classification").config) == "multi_label_classification"
