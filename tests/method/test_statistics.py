"""The statistics pass against per-example autograd and direct sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import oracles
import tiny
from faster_pruner.data.batches import rows_with
from faster_pruner.errors import OptionError
from faster_pruner.method.algorithm import calibrate
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.objectives.objective import Cotangents, Predictions
from faster_pruner.options import CalibrationOptions, Fisher, Method, SecondOrder, SolverOptions, Weights

RECOVERY = Weights(solver=SolverOptions(name="cholesky", ridge=1e-9), align=1e-2)
FIRST_ORDER = Method(name="first", labels=True, selection=Fisher(), recovery=RECOVERY)
SECOND_ORDER = replace(FIRST_ORDER, selection=SecondOrder())
# What goes into the normalisation after a branch: the branch plus what it is added to.
NORMS = {
    "bert": {"attention": "attention.output.LayerNorm", "ffn": "output.LayerNorm"},
    "roberta": {"attention": "attention.output.LayerNorm", "ffn": "output.LayerNorm"},
    "distilbert": {"attention": "sa_layer_norm", "ffn": "output_layer_norm"},
}


def take(
    method: Method, family: str = "bert", *, tokens_per_batch: int = 40, rows: int = 12, labels: int = 2
) -> Calibrated:
    options = CalibrationOptions(precision="float32", tokens_per_batch=tokens_per_batch)
    subject = tiny.make_subject(tiny.make_model(family, labels=labels))
    return calibrate(subject, tiny.make_rows(rows, labels=labels), method, options)


def expected(calibrated: Calibrated, *, labelled: bool, labels: int = 2) -> list[dict[str, oracles.Traced]]:
    """By row and sublayer, what autograd says of every row alone, without padding."""
    subject, rows = calibrated.subject, tiny.make_rows(calibrated.data.rows, labels=labels)
    cotangents = Cotangents(subject.objective.likelihood, labelled=labelled, rows=len(rows), seed=0)
    found: list[dict[str, oracles.Traced]] = []
    assert rows.labels is not None
    for i, (row, label) in enumerate(zip(rows.tokens, rows.labels, strict=True)):
        inputs = {"input_ids": torch.tensor([row["input_ids"]])}
        with torch.no_grad():
            logits = subject.model(**inputs).logits
        start = cotangents.of(Predictions(logits, torch.tensor([i]), torch.tensor([label])))

        def values(inputs: dict[str, Tensor] = inputs) -> Tensor:
            return subject.model(**inputs).logits

        found.append(oracles.trace(subject.model, subject.sublayers, values, start))
    return found


def by_row(calibrated: Calibrated, chosen: Sequence[Tensor], tensors: Sequence[Tensor]) -> dict[int, Tensor]:
    """Tensors [T, d] of the chosen tokens of each batch, as one [t, d] per row."""
    found: dict[int, Tensor] = {}
    for batch, own, tensor in zip(calibrated.data.batches, chosen, tensors, strict=False):
        parts = tensor.split(own.sum(dim=1).tolist())
        found |= dict(zip(batch.rows.tolist(), parts, strict=True))
    return found


@pytest.mark.parametrize(
    ("family", "labels"), [*((family, 2) for family in sorted(tiny.CONFIGS)), ("bert", 1), ("bert", 3)]
)
@pytest.mark.parametrize("labelled", [True, False])
def test_mask_gradients_are_per_example_autograd(family: str, labels: int, labelled: bool) -> None:
    found = take(replace(FIRST_ORDER, labels=labelled), family, labels=labels)
    traced = expected(found, labelled=labelled, labels=labels)
    for name, statistics in found.statistics.sublayers.items():
        assert statistics.mask_gradients is not None
        direct = torch.stack([row[name].mask_gradient for row in traced])
        assert torch.allclose(statistics.mask_gradients, direct, atol=1e-5, rtol=1e-3), name
        assert statistics.rows == 12


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
@pytest.mark.parametrize("labelled", [True, False])
def test_moments_are_sums_over_the_real_tokens_that_are_read(family: str, labelled: bool) -> None:
    found = take(replace(SECOND_ORDER, labels=labelled), family)
    traced = expected(found, labelled=labelled)
    for s in found.sublayers:
        own = found.statistics[s.name]
        assert own.x is not None
        assert own.y_gradient is not None
        # of the last layer only the first token is read
        read = slice(None) if s.layer == 0 else slice(1)
        x = torch.cat([row[s.name].x[read] for row in traced]).double()
        gradient = torch.cat([row[s.name].y_gradient[read] for row in traced]).double()
        assert own.x.count == own.y_gradient.count == len(x)
        assert torch.allclose(own.x.plain(), x.T @ x, rtol=1e-4, atol=1e-4)
        assert torch.allclose(own.y_gradient.plain(), gradient.T @ gradient, rtol=1e-3, atol=1e-5)
        # what is not read has no gradient at all
        assert all(not row[s.name].y_gradient[1:].any() for row in traced) or s.layer == 0


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_targets_are_what_every_branch_makes_of_the_model(family: str) -> None:
    found = take(SECOND_ORDER, family)
    model, rows = found.subject.model, tiny.make_rows()
    seen: dict[str, Tensor] = {}
    for s in found.sublayers:

        def keep(module: torch.nn.Module, args: tuple[Tensor, ...], name: str = s.name) -> None:
            seen[name] = args[0][0]

        model.get_submodule(s.prefix + NORMS[family][s.spec.kind]).register_forward_pre_hook(keep)
    targets = {
        s.name: by_row(found, found.statistics[s.name].read, found.statistics[s.name].targets) for s in found.sublayers
    }
    for i, row in enumerate(rows.tokens):
        with torch.no_grad():
            model(input_ids=torch.tensor([row["input_ids"]]))
        for s in found.sublayers:
            direct = seen[s.name] if s.layer == 0 else seen[s.name][:1]
            assert torch.allclose(targets[s.name][i], direct, atol=1e-4), s.name


@pytest.mark.parametrize("labelled", [True, False])
def test_results_do_not_depend_on_the_packing(labelled: bool) -> None:
    for method in (FIRST_ORDER, SECOND_ORDER):
        method = replace(method, labels=labelled)
        small, large = take(method, tokens_per_batch=12), take(method, tokens_per_batch=1000)
        assert len(large.data.batches) < len(small.data.batches)
        for name, a in small.statistics.sublayers.items():
            b = large.statistics[name]
            assert a.rows == b.rows
            if a.mask_gradients is not None and b.mask_gradients is not None:
                assert torch.allclose(a.mask_gradients, b.mask_gradients, atol=1e-5)
            for mine, other in ((a.x, b.x), (a.y_gradient, b.y_gradient)):
                if mine is not None and other is not None:
                    assert torch.allclose(mine.plain(), other.plain(), rtol=1e-4, atol=1e-4)
                    assert mine.count == other.count
            a_targets, b_targets = by_row(small, a.read, a.targets), by_row(large, b.read, b.targets)
            assert all(torch.allclose(a_targets[row], b_targets[row], atol=1e-5) for row in range(12))


def test_padding_never_counts_and_the_last_layer_reads_one_token() -> None:
    found = take(SECOND_ORDER)
    rows = tiny.make_rows()
    for s in found.sublayers:
        own = found.statistics[s.name]
        assert own.x is not None
        assert own.x.count == (sum(rows.lengths) if s.layer == 0 else len(rows))
        for batch, read in zip(found.data.batches, own.read, strict=True):
            assert batch.mask is not None
            if s.layer == 0:
                assert torch.equal(read, batch.mask)
            else:
                assert read[:, 0].all()
                assert not read[:, 1:].any()


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_rows_that_run_forward_only_give_targets_and_nothing_else(family: str) -> None:
    some = replace(SECOND_ORDER, labels=False, selection=SecondOrder(moment_tokens=2))
    found = take(some, family, rows=30)
    whole = take(replace(some, selection=SecondOrder()), family, rows=30)
    first = rows_with(tiny.make_rows(30).lengths, 2 * max(s.columns for s in found.sublayers))
    assert 0 < first < 30
    # signs are drawn for all rows at once, so the first rows have the same ones in both
    traced = expected(whole, labelled=False)
    for s in found.sublayers:
        own, complete = found.statistics[s.name], whole.statistics[s.name]
        mine, theirs = by_row(found, own.read, own.targets), by_row(whole, complete.read, complete.targets)
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[row], theirs[row], atol=1e-5) for row in range(30))
        # of the last layer the objective reads one token per row: every row counts there
        last = s.layer == 1
        assert own.rows == (30 if last else first)
        assert own.x is not None
        assert own.y_gradient is not None
        read = slice(1) if last else slice(None)
        x = torch.cat([row[s.name].x[read] for row in traced[: own.rows]]).double()
        gradient = torch.cat([row[s.name].y_gradient[read] for row in traced[: own.rows]]).double()
        assert own.x.count == len(x)
        assert torch.allclose(own.x.plain(), x.T @ x, rtol=1e-4, atol=1e-4)
        assert torch.allclose(own.y_gradient.plain(), gradient.T @ gradient, rtol=1e-3, atol=1e-6)
        with_sources = [batch for batch in found.data.batches if batch.differentiated or last]
        assert len(own.sources) == len(with_sources)


def test_nothing_is_taken_that_the_method_does_not_use() -> None:
    plain = replace(SECOND_ORDER, recovery=None)
    for own in take(plain).statistics.sublayers.values():
        assert own.mask_gradients is None
        assert len(own.targets) == len(own.sources) == 0
    for own in take(replace(FIRST_ORDER, recovery=replace(RECOVERY, align=None))).statistics.sublayers.values():
        assert own.x is own.y_gradient is None
        assert len(own.targets) > 0
        assert len(own.sources) == 0


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(tiny.make_subject(model), tiny.make_rows(), FIRST_ORDER, CalibrationOptions())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_labels_that_are_needed_and_missing_are_one_clear_error() -> None:
    rows = replace(tiny.make_rows(), labels=None)
    with pytest.raises(OptionError, match="gradients of labels, and the rows have none"):
        calibrate(tiny.make_subject(tiny.make_model()), rows, FIRST_ORDER, CalibrationOptions())
    calibrate(tiny.make_subject(tiny.make_model()), rows, replace(FIRST_ORDER, labels=False), CalibrationOptions())
