"""Families that are found by running a model: the same as written by hand, and right where no row describes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

import cases
from faster_pruner import Objective, Predictions, prune_model
from faster_pruner.data.batches import Batch
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.detection.detect import detect
from faster_pruner.model.detection.proof import proved
from faster_pruner.model.passes import inference
from faster_pruner.model.spec import Sublayer, resolve
from faster_pruner.objectives.likelihoods import Gaussian
from made_up import MADE_UP

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_USUAL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
# Types that no row describes, with tiny sizes, and the units of their first sublayers.
TYPES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}, (4, 48)),
    "llama": ({**_USUAL, "num_key_value_heads": 2}, (2, 48)),
    "qwen2": ({**_USUAL, "num_key_value_heads": 2}, (2, 48)),
    "gpt_neox": (_USUAL, (4, 48)),
    "gemma2": ({**_USUAL, "num_key_value_heads": 2, "head_dim": 8}, (2, 48)),
    "electra": ({**_USUAL, "embedding_size": 32}, (4, 48)),
    "mpnet": (_USUAL, (4, 48)),
    "modernbert": (_USUAL, (4, 48)),
}


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 64, (6, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def model_of(name: str) -> Any:
    """A random model whose weights are large enough for every unit to matter."""
    config = AutoConfig.for_model(name, **SIZES, **TYPES[name][0])
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25)
    return model


def described(sublayer: Sublayer) -> tuple[Any, ...]:
    """What must be the same, whoever describes a sublayer."""
    parts, spec = sublayer.parts, sublayer.spec
    sources = [producer.source for producer in spec.producers]
    sizes = (parts.units, parts.unit_size, parts.producers, parts.transposed)
    return (*sizes, spec.join, spec.mixes_tokens, spec.least, sources, sublayer.stack.mask)


@pytest.mark.parametrize("name", [*MADE_UP, "bert", "distilbert"])
def test_what_is_found_is_what_was_written_by_hand(name: str) -> None:
    case = cases.make(name)
    with inference(case.model):
        family, dropped = proved(case.model, detect(case.model, cases.inputs_of(name)).family, cases.inputs_of(name))
    assert not dropped
    found = {s.parts.projection: described(s) for s in resolve(case.model, family)}
    assert found == {s.parts.projection: described(s) for s in case.sublayers}


@pytest.mark.parametrize("name", sorted(TYPES))
def test_types_without_a_row_are_found_and_proved(name: str) -> None:
    model = model_of(name)
    with inference(model):
        family, dropped = proved(model, detect(model, inputs()).family, inputs())
    assert not dropped
    sublayers = resolve(model, family)
    assert [s.units for s in sublayers] == [*TYPES[name][1]] * 2
    assert [s.spec.mixes_tokens for s in sublayers] == [True, False] * 2


def pooled(returned: Any, batch: Batch) -> Predictions:
    mask = batch.inputs["attention_mask"][:, :, None].float()
    return Predictions((returned.last_hidden_state * mask).sum(1) / mask.sum(1), batch.rows)


@pytest.mark.parametrize("name", ["gpt2", "llama", "electra", "gpt_neox"])
def test_they_are_pruned_in_memory_and_not_saved_yet(name: str, tmp_path: Any, quick_latency: None) -> None:
    objective = Objective(name="pooled", readout=pooled, likelihood=Gaussian())
    result = prune_model(model_of(name), [inputs(), inputs()], macs=0.6, objective=objective)
    assert result.report.macs_kept <= 0.6
    assert len(result.report.sublayers) == 4
    assert torch.isfinite(result.model(**inputs()).last_hidden_state).all()
    with pytest.raises(UnsupportedModelError, match="is not supported"):
        result.save(tmp_path / "out")


def test_a_model_without_layers_is_refused() -> None:
    config = AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    model = AutoModel.from_config(config).eval()
    with inference(model), pytest.raises(UnsupportedModelError, match="no sublayer that can be described"):
        detect(model, {"pixel_values": torch.rand(2, 3, 32, 32)})
