"""What the objective reads comes from the structure of the model, not from values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import Batch, EncodedRows
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.objectives.likelihoods import Gaussian
from faster_pruner.objectives.objective import Objective, Predictions
from faster_pruner.options import PRESETS, CalibrationOptions, Method, SecondOrder

OPTIONS = CalibrationOptions(precision="float32", tokens_per_batch=40)


def every_token(labels: bool) -> Method:
    """The default method with all rows differentiated."""
    return replace(PRESETS["default"], labels=labels, selection=SecondOrder())


def saturated(family: str, rows: EncodedRows) -> tuple[Any, EncodedRows]:
    """A model whose every prediction is certain in float32, and the rows with what it predicts."""
    model = tiny.make_model(family)
    head = model.classifier if hasattr(model.classifier, "weight") else model.classifier.out_proj
    with torch.no_grad():
        head.weight.mul_(1e4)
        head.bias.mul_(1e4)
        logits = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows.tokens]
    certain = torch.stack(logits)
    assert certain.softmax(-1).prod(dim=-1).sqrt().count_nonzero() == 0
    return model, replace(rows, labels=certain.argmax(dim=-1).tolist())


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
@pytest.mark.parametrize("labels", [False, True])
def test_certain_predictions_lose_no_row(family: str, labels: bool) -> None:
    rows = tiny.make_rows()
    model, labelled = saturated(family, rows)
    found = calibrate(tiny.make_subject(model), labelled, every_token(labels), OPTIONS)
    for s in found.sublayers:
        own = found.statistics[s.name]
        tokens = sum(rows.lengths) if s.layer == 0 else len(rows)
        assert own.x is not None
        assert own.y_gradient is not None
        assert (own.x.count, own.y_gradient.count, own.rows) == (tokens, tokens, len(rows))
        assert sum(len(target) for target in own.targets) == tokens
        # not one gradient: values could not have told what is read
        assert not own.y_gradient.plain().any()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_model_without_any_gradient_is_pruned_and_recovered(preset: str) -> None:
    model, rows = saturated("bert", tiny.make_rows(40))
    method = PRESETS[preset]
    found = calibrate(tiny.make_subject(model), rows, method, OPTIONS)
    pruned = cut(found, Budget(macs=0.5), method)
    assert all(result.status in ("converged", "skipped") for result in pruned.results)
    assert all(torch.isfinite(value).all() for value in pruned.model.state_dict().values())
    if preset == "default":
        assert all(r.residual_after < r.residual_before for r in pruned.results if r.units < r.units_before)


def first_layer_only(returned: Any, batch: Batch) -> Predictions:
    return Predictions(returned.hidden_states[1][:, 0], batch.rows)


def no_layer(returned: Any, batch: Batch) -> Predictions:
    return Predictions(returned.hidden_states[0][:, 0], batch.rows)


def early(readout: Any) -> Objective:
    return Objective(name="early", readout=readout, likelihood=Gaussian())


def calibrated(family: str, method: Method, readout: Any = first_layer_only) -> Calibrated:
    model = tiny.make_model(family, output_hidden_states=True)
    return calibrate(tiny.make_subject(model, early(readout)), tiny.make_rows(40), method, OPTIONS)


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_sublayers_that_the_objective_never_reaches_stay_whole(family: str, preset: str) -> None:
    method = replace(PRESETS[preset], labels=False)
    found = calibrated(family, method)
    assert [s.name for s in found.sublayers] == ["layers.0.attention", "layers.0.ffn"]
    assert found.whole == dict.fromkeys(("layers.1.attention", "layers.1.ffn"), "the objective reads nothing of it")
    assert all(own.rows > 0 for own in found.statistics.sublayers.values())
    for share in (0.6, 0.2):
        pruned = cut(found, Budget(macs=share), method)
        assert [result.name for result in pruned.results] == ["layers.0.attention", "layers.0.ffn"]
        assert [s.name for s in pruned.sublayers] == [s.name for s in found.subject.sublayers]
        assert [s.units for s in pruned.sublayers[2:]] == [s.units for s in found.subject.sublayers[2:]]
        assert sum(r.units for r in pruned.results) < sum(r.units_before for r in pruned.results)
        assert all(torch.isfinite(value).all() for value in pruned.model.state_dict().values())
        untouched = {name: value for name, value in pruned.model.state_dict().items() if ".layer.1." in name}
        before = found.subject.model.state_dict()
        assert untouched
        assert all(torch.equal(value, before[name]) for name, value in untouched.items())


def test_statistics_of_the_others_are_those_of_a_model_that_ends_there() -> None:
    """What comes after the last reading changes nothing: here the second layer has other weights."""
    method = every_token(labels=False)
    found = calibrated("bert", method)
    other = tiny.make_model("bert", output_hidden_states=True)
    with torch.no_grad():
        for parameter in other.bert.encoder.layer[1].parameters():
            parameter.normal_()
    again = calibrate(tiny.make_subject(other, early(first_layer_only)), tiny.make_rows(40), method, OPTIONS)
    for name, own in found.statistics.sublayers.items():
        theirs = again.statistics[name]
        assert own.x is not None
        assert theirs.x is not None
        assert own.y_gradient is not None
        assert theirs.y_gradient is not None
        assert torch.equal(own.x.plain(), theirs.x.plain())
        assert torch.equal(own.y_gradient.plain(), theirs.y_gradient.plain())
    # of the first layer's feed-forward only the first token is read now
    assert found.statistics["layers.0.ffn"].x is not None
    assert found.statistics["layers.0.ffn"].x.count == 40


def test_an_objective_that_reads_no_sublayer_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="the objective 'early' reads none of the model's sublayers"):
        calibrated("bert", PRESETS["default"], no_layer)


def some_tokens(returned: Any, batch: Batch) -> Predictions:
    """The tokens of even number, wherever they stand: no simple rule describes what is read."""
    chosen = (batch.inputs["input_ids"] % 2 == 0) & batch.inputs["attention_mask"].bool()
    rows = batch.rows[:, None].expand(chosen.shape)[chosen]
    return Predictions(returned.hidden_states[-1][chosen], rows)


@pytest.mark.parametrize("tokens_per_batch", [12, 1000])
def test_what_no_rule_describes_is_found_batch_by_batch(tokens_per_batch: int) -> None:
    method, rows = every_token(labels=False), tiny.make_rows(40)
    subject = tiny.make_subject(tiny.make_model(output_hidden_states=True), early(some_tokens))
    found = calibrate(subject, rows, method, replace(OPTIONS, tokens_per_batch=tokens_per_batch))
    even = sum(token % 2 == 0 for row in rows.tokens for token in row["input_ids"])
    assert 0 < even < sum(rows.lengths)
    for batch, read in zip(found.data.batches, found.statistics["layers.1.ffn"].read, strict=True):
        ids: Tensor = batch.inputs["input_ids"]
        assert torch.equal(read, (ids % 2 == 0) & batch.inputs["attention_mask"].bool())
    own = found.statistics["layers.1.ffn"]
    assert own.x is not None
    assert own.x.count == even
    results = cut(found, Budget(macs=0.5), method).results
    assert all(r.residual_after <= r.residual_before + 1e-3 for r in results)
