"""An objective of one's own is one value: a readout and a likelihood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForQuestionAnswering, BertModel, PreTrainedModel

import oracles
import tiny
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import Batch, adopt
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.objectives.evaluation import predict
from faster_pruner.objectives.likelihoods import Categorical, Gaussian
from faster_pruner.objectives.objective import Cotangents, Objective, Predictions
from faster_pruner.options import CalibrationOptions, Fisher, Method, SecondOrder, SolverOptions, Weights

OPTIONS = CalibrationOptions(precision="float32")
RECOVERY = Weights(solver=SolverOptions(name="auto", ridge=1e-2), align=1e-2)
LENGTHS = [9, 5, 7, 3, 9, 4, 8, 6]


def mean_of_states(returned: Any, batch: Batch) -> Predictions:
    real = batch.inputs["attention_mask"][:, :, None]
    return Predictions((returned.last_hidden_state * real).sum(dim=1) / real.sum(dim=1), batch.rows, batch.labels)


EMBEDDING = Objective(name="embedding", readout=mean_of_states, likelihood=Gaussian())


def start_and_end(returned: Any, batch: Batch) -> Predictions:
    nowhere = ~batch.inputs["attention_mask"].bool()
    both = torch.cat([returned.start_logits, returned.end_logits]).masked_fill(nowhere.repeat(2, 1), -1e4)
    return Predictions(both, batch.rows.repeat(2), None if batch.labels is None else batch.labels.T.flatten())


ANSWERING = Objective(name="answering", readout=start_and_end, likelihood=Categorical())


def make(of: type[PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = of(tiny.CONFIGS["bert"]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(0.0, 0.25)
    return model


def dictionaries(width: int = 0) -> list[dict[str, Tensor]]:
    """Two batches of four rows, as a training loop has them: padded, with starts and ends as labels."""
    generator = torch.Generator().manual_seed(0)
    made: list[dict[str, Tensor]] = []
    for lengths in (LENGTHS[:4], LENGTHS[4:]):
        rows = len(lengths)
        mask = torch.arange(max(*lengths, width))[None] < torch.tensor(lengths)[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        for row, length in enumerate(lengths):
            ids[row, :length] = torch.randint(4, tiny.VOCABULARY, (length,), generator=generator)
        labels = torch.stack([torch.zeros(rows), torch.tensor(lengths) - 1.0], dim=1).long()
        made.append({"input_ids": ids, "attention_mask": mask.long(), "labels": labels})
    return made


def calibrated(model: PreTrainedModel, objective: Objective, method: Method, *, width: int = 0) -> Calibrated:
    batches = adopt(dictionaries(width), torch.device("cpu"))
    return calibrate(tiny.make_subject(model, objective), batches, method, OPTIONS)


def expected(found: Calibrated, *, labelled: bool) -> dict[str, Tensor]:
    """[N, U] by sublayer: every row alone and without padding, from the same start as in its batch."""
    subject = found.subject
    cotangents = Cotangents(subject.objective.likelihood, labelled=labelled, rows=len(LENGTHS), seed=0)
    rows: list[dict[str, Tensor]] = []
    for batch in found.data.batches:
        with torch.no_grad():
            predictions = subject.objective.readout(subject.model(**batch.inputs), batch)
        starts = cotangents.of(predictions)
        for row in batch.rows.tolist():
            length = LENGTHS[row]
            inputs = {key: value[row % 4 : row % 4 + 1, :length] for key, value in batch.inputs.items()}
            alone = Batch(inputs=inputs, rows=torch.tensor([row]), labels=None)

            def values(alone: Batch = alone) -> Tensor:
                return subject.objective.readout(subject.model(**alone.inputs), alone).values

            start = starts[predictions.rows == row][:, : values().shape[1]]
            traced = oracles.trace(subject.model, subject.sublayers, values, start)
            rows.append({name: each.mask_gradient for name, each in traced.items()})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(
    ("of", "objective", "labelled"),
    [
        (BertModel, EMBEDDING, False),
        (BertForQuestionAnswering, ANSWERING, False),
        (BertForQuestionAnswering, ANSWERING, True),
    ],
)
def test_statistics_are_per_example_autograd(of: type[PreTrainedModel], objective: Objective, labelled: bool) -> None:
    method = Method(name="own", labels=labelled, selection=Fisher(), recovery=RECOVERY)
    found = calibrated(make(of), objective, method)
    for name, direct in expected(found, labelled=labelled).items():
        own = found.statistics[name].mask_gradients
        assert own is not None
        assert torch.allclose(own, direct, atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize(("of", "objective"), [(BertModel, EMBEDDING), (BertForQuestionAnswering, ANSWERING)])
@pytest.mark.parametrize("selection", [Fisher(), SecondOrder()])
def test_a_model_is_pruned_for_it(
    of: type[PreTrainedModel], objective: Objective, selection: Fisher | SecondOrder
) -> None:
    method = Method(name="own", labels=False, selection=selection, recovery=RECOVERY)
    found = calibrated(make(of), objective, method)
    # everything is read, to the last layer's last token
    for s in found.sublayers:
        for batch, read in zip(found.data.batches, found.statistics[s.name].read, strict=True):
            assert torch.equal(read, batch.inputs["attention_mask"].bool())
    assert len(found.sublayers) == 4
    dense = predict(found.subject.model, objective, found.data.batches)
    distances: list[float] = []
    for how in (method, Method(name="own", labels=False, selection=selection, recovery=None)):
        pruned = cut(found, Budget(macs=0.5), how)
        assert sum(s.units for s in pruned.sublayers) < sum(s.units for s in found.sublayers)
        values = predict(pruned.model, objective, found.data.batches).values
        real = dense.values > -1e3
        distances.append(float(((values - dense.values)[real] ** 2).sum()))
    assert distances[0] < distances[1]


def test_padding_changes_nothing() -> None:
    method = Method(name="own", labels=True, selection=Fisher(), recovery=RECOVERY)
    tight = calibrated(make(BertForQuestionAnswering), ANSWERING, method)
    loose = calibrated(make(BertForQuestionAnswering), ANSWERING, method, width=20)
    for name, own in tight.statistics.sublayers.items():
        other = loose.statistics[name]
        assert own.mask_gradients is not None
        assert other.mask_gradients is not None
        assert torch.allclose(own.mask_gradients, other.mask_gradients, atol=1e-5)
        assert [read.sum() for read in own.read] == [read.sum() for read in other.read]


def sum_of_states(returned: Any, batch: Batch) -> Predictions:
    """Padding included, as it should not be."""
    return Predictions(returned.last_hidden_state.sum(dim=1), batch.rows)


def sum_of_real_states(returned: Any, batch: Batch) -> Predictions:
    return Predictions((returned.last_hidden_state * batch.inputs["attention_mask"][:, :, None]).sum(1), batch.rows)


def test_padding_does_not_count_even_for_an_objective_that_reads_it() -> None:
    """After the last sublayer no token meets another: there real tokens count as if padding had not been read."""
    method = Method(name="own", labels=False, selection=Fisher(), recovery=RECOVERY)
    found = [
        calibrated(make(BertModel), Objective(name="sum", readout=readout, likelihood=Gaussian()), method)
        for readout in (sum_of_states, sum_of_real_states)
    ]
    a, b = (each.statistics["layers.1.ffn"] for each in found)
    assert a.mask_gradients is not None
    assert b.mask_gradients is not None
    assert torch.allclose(a.mask_gradients, b.mask_gradients, atol=1e-5)
    assert all(torch.equal(mine, other) for mine, other in zip(a.read, b.read, strict=True))
