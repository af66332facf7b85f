"""Families that are found by running a model: the same as written by hand, and right where no row describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

import cases
from faster_pruner import Objective, Predictions, load, prune_model
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


# Types of which something is left whole: their sizes, and the reasons by the ends of the paths of their first layer.
LEFT: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "olmo2": (
        {**_USUAL, "num_key_value_heads": 2},
        {
            "self_attn.o_proj": "q_proj and k_proj have a part in all of its columns at once",
            "self_attn.q_proj": "each of its features has a part in everything that comes after it",
            "self_attn.v_proj": "it computes columns of layers.0.self_attn.o_proj, which is left whole",
        },
    ),
    "mixtral": (
        {**_USUAL, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2},
        {"mlp.experts": "one tensor holds 3 matrices"},
    ),
    "qwen2_moe": (
        {
            **_USUAL,
            "num_key_value_heads": 2,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
        {
            "mlp.experts": "one tensor holds 3 matrices",
            "mlp.shared_expert_gate": "no other matrix of its layer reads what it computes",
        },
    ),
}


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 64, (6, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def model_of(name: str, sizes: dict[str, Any] | None = None) -> Any:
    """A random model whose weights are large enough for every unit to matter."""
    config = AutoConfig.for_model(name, **SIZES, **(sizes or TYPES[name][0]))
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
def test_they_are_pruned_saved_and_reopened(name: str, tmp_path: Path, quick_latency: None) -> None:
    objective = Objective(name="pooled", readout=pooled, likelihood=Gaussian())
    result = prune_model(model_of(name), [inputs(), inputs()], macs=0.6, objective=objective)
    assert result.report.macs_kept <= 0.6
    assert len(result.report.sublayers) == 4
    assert torch.isfinite(result.model(**inputs()).last_hidden_state).all()
    assert "bit-equal" in result.save(tmp_path / "out").verified
    with torch.no_grad():
        expected = result.model(**inputs()).last_hidden_state
        for reopened in (load(tmp_path / "out"), AutoModel.from_pretrained(tmp_path / "out")):
            assert torch.equal(reopened(**inputs()).last_hidden_state, expected)


def test_a_model_without_layers_is_refused() -> None:
    config = AutoConfig.for_model("resnet", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    model = AutoModel.from_config(config).eval()
    with inference(model), pytest.raises(UnsupportedModelError, match="no sublayer that can be described"):
        detect(model, {"pixel_values": torch.rand(2, 3, 32, 32)})


@pytest.mark.parametrize("name", sorted(LEFT))
def test_what_is_left_whole_has_a_reason(name: str) -> None:
    sizes, reasons = LEFT[name]
    model = model_of(name, sizes)
    with inference(model):
        left = detect(model, inputs()).left
    for path, reason in reasons.items():
        assert reason in left[f"layers.0.{path}"]


def test_a_convolution_that_is_read_and_never_called_follows() -> None:
    sizes = {**_USUAL, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "num_dense_layers": 2}
    model = model_of("lfm2_moe", sizes)
    with inference(model):
        family, dropped = proved(model, detect(model, inputs()).family, inputs())
    assert not dropped
    first = next(s for s in resolve(model, family) if s.parts.projection == "layers.0.conv.out_proj")
    assert first.units == 32
    assert [(f.module, f.name, f.per_unit) for f in first.parts.followers] == [("layers.0.conv.conv", "weight", 1)]


def test_tokens_before_rows_are_refused_as_such() -> None:
    model = model_of("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48})
    with inference(model), pytest.raises(UnsupportedModelError, match="its tokens do not come row after row"):
        proved(model, detect(model, inputs()).family, inputs())


class Packed(torch.nn.Module):
    """Takes the tokens of all rows in one dimension, with the number of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.config = None
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 8)) for _ in range(2)
        )

    def forward(self, patches: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        parts = patches.split(counts.tolist())
        x = torch.cat([part - part.mean(dim=0) for part in parts])
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_packed_rows_are_refused_as_such() -> None:
    given = {"patches": torch.rand(5, 8), "counts": torch.tensor([3, 2])}
    model = Packed().eval()
    with inference(model), pytest.raises(UnsupportedModelError, match="cannot run on copies of the first row"):
        detect(model, given)
