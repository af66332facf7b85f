"""`prune_model`: a model in memory, batches of your own, no tokenizer and no folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import colours
import tiny
from faster_pruner import Budget, Limit, Objective, Predictions, load, prune_model
from faster_pruner.data.batches import Batch
from faster_pruner.errors import DataError, OptionError, OutputError, UnsupportedModelError
from faster_pruner.model.passes import inference
from faster_pruner.objectives.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("quick_latency")


def dictionaries(count: int = 6, *, labels: bool = False) -> list[dict[str, Tensor]]:
    """Batches as a training loop has them."""
    found: list[dict[str, Tensor]] = []
    for batch in tiny.make_batches(tiny.make_rows(8 * count)):
        assert batch.labels is not None
        found.append({**batch.inputs, "labels": batch.labels} if labels else dict(batch.inputs))
    return found


def values(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What a model says about a batch."""
    with inference(model):
        return model(**batch).logits


def test_the_result_is_a_smaller_model_and_the_given_one_is_left_alone() -> None:
    model, batches = tiny.make_model(), dictionaries()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    result = prune_model(model, batches, macs=0.5)
    assert type(result.model) is type(model)
    assert result.report.macs_kept <= 0.5
    assert sum(p.numel() for p in result.model.parameters()) == result.report.pruned.parameters
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert result.report.before == {}


def test_of_what_has_no_tokens_nothing_was_cut() -> None:
    """Of texts that somebody else has encoded, nobody knows."""
    model = colours.make_vit()
    size = model.config.image_size
    images = [{"pixel_values": torch.rand(6, 3, size, size)} for _ in range(3)]
    found = prune_model(model, images, macs=0.6).report.lengths
    assert found is not None
    assert found.truncated == 0
    texts = prune_model(tiny.make_model(), dictionaries()).report.lengths
    assert texts is not None
    assert texts.truncated is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_writes_a_checkpoint_that_opens_like_any_other(dtype: torch.dtype, tmp_path: Path) -> None:
    batches = dictionaries()
    result = prune_model(tiny.make_model().to(dtype), batches)
    assert result.model.dtype is dtype
    report = result.save(tmp_path / "out")
    assert "bit-equal" in report.verified
    assert json.loads((tmp_path / "out" / "result.json").read_text())["verified"] == report.verified
    opened = load(tmp_path / "out", dtype=dtype)
    opened.set_attn_implementation("eager")
    assert torch.equal(values(opened, batches[0]), values(result.model, batches[0]))
    with pytest.raises(OutputError, match="not empty"):
        result.save(tmp_path / "out")
    result.save(tmp_path / "out", overwrite=True)


def test_any_iterable_of_dictionaries_will_do() -> None:
    """A list, a generator and a DataLoader of the same batches give the same model."""
    batches = dictionaries(4)

    def generated() -> Iterator[dict[str, Tensor]]:
        yield from batches

    loader: Any = DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]
    results = [prune_model(tiny.make_model(), given) for given in (batches, generated(), loader)]
    weights = [result.model.state_dict() for result in results]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])


def test_labels_are_used_by_methods_that_want_them() -> None:
    assert prune_model(tiny.make_model(), dictionaries(labels=True), method="kwon2022").report.macs_kept <= 0.5
    with pytest.raises(OptionError, match="have none"):
        prune_model(tiny.make_model(), dictionaries(), method="kwon2022")


def test_an_objective_of_ones_own() -> None:
    """Mean-pooled hidden states as the output, for a model that has no head at all."""

    def pooled(returned: Any, batch: Batch) -> Predictions:
        mask = batch.inputs["attention_mask"][:, :, None].float()
        return Predictions((returned.last_hidden_state * mask).sum(1) / mask.sum(1), batch.rows)

    objective = Objective(name="pooled", readout=pooled, likelihood=Gaussian())
    model = tiny.make_model().base_model
    with pytest.raises(UnsupportedModelError, match="a vector for every token"):
        prune_model(model, dictionaries())
    result = prune_model(model, dictionaries(), objective=objective)
    assert result.report.macs_kept <= 0.5
    assert result.report.task == "pooled"
    assert all((s.residual_after or 0.0) <= (s.residual_before or 1.0) for s in result.report.sublayers)


def test_budgets_are_those_of_prune() -> None:
    budget = Budget(limits=(Limit(cost="parameters", share=0.8),), allocation="uniform")
    report = prune_model(tiny.make_model(), dictionaries(), macs=budget).report
    assert report.macs_asked is None
    assert report.limits[0].pruned <= 0.8 * report.limits[0].dense
    assert len({s.units for s in report.sublayers if s.name.endswith("ffn")}) == 1


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no calibration batches"),
        ([torch.ones(2, 3)], "batch 0 is a Tensor; a dictionary of tensors is needed"),
        ([{"input_ids": [[1, 2]]}], "a dictionary of tensors is needed"),
        ([{"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(3, 3)}], "one first dimension"),
    ],
)
def test_unusable_batches_are_one_clear_error(batches: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prune_model(tiny.make_model(), batches)


def test_a_model_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear has no config"):
        prune_model(torch.nn.Linear(2, 2), dictionaries())
