"""What `inspect` says of models that the table describes, of others, and of pruned ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, MixtralConfig, MixtralForCausalLM

import tiny
from command import run
from faster_pruner import inspect, prune_model

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(LlamaConfig(**_SIZES)).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_row_of_the_table(tmp_path: Path) -> None:
    found = inspect(tiny.save_checkpoint(tmp_path / "bert"))
    assert (found.origin, found.pruned, found.task) == ("table", False, "text-classification")
    (stack,) = found.stacks
    attention, ffn = stack.sublayers
    assert (stack.path, stack.layers, attention.units, ffn.units) == ("bert.encoder.layer", 2, [3, 3], [40, 40])
    assert attention.producers["attention.self.query"] == "8 rows per head"
    # what is prunable is what the matrices of the branches hold
    per_layer = 3 * (24 * 24 + 24) + 24 * 24 + (40 * 24 + 40) + 40 * 24
    assert found.prunable == 2 * per_layer
    assert not found.left


def test_grouped_queries_are_found(llama: Path) -> None:
    found = inspect(llama)
    assert found.origin == "detected"
    attention, ffn = found.stacks[0].sublayers
    assert (attention.unit, attention.units, attention.columns) == ("group", [2, 2], 16)
    assert [attention.producers[f"self_attn.{name}_proj"] for name in "qkv"] == [
        "16 rows per group",
        "8 rows per group",
        "8 rows per group",
    ]
    assert sorted(ffn.producers) == ["mlp.gate_proj", "mlp.up_proj"]


@pytest.mark.on_the_cpu
def test_what_stays_whole_is_said_with_the_reason(tmp_path: Path) -> None:
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2)).save_pretrained(
        tmp_path / "experts"
    )
    found = inspect(tmp_path / "experts")
    assert [s.kind for s in found.stacks[0].sublayers] == ["attention"]
    assert found.left["one tensor holds 4 matrices, one for each expert or head"] == ["model.layers.0-1.mlp.experts"]


def test_a_pruned_one_shows_what_is_left_in_each_layer(llama: Path, tmp_path: Path) -> None:
    ids = torch.randint(4, 64, (6, 7), generator=torch.Generator().manual_seed(0))
    model = AutoModelForSequenceClassification.from_pretrained(llama)
    result = prune_model(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], macs=0.5)
    result.save(tmp_path / "small")
    found = inspect(tmp_path / "small")
    assert (found.origin, found.pruned) == ("recorded", True)
    units = [count for kind in found.stacks[0].sublayers for count in kind.units]
    left = {s.name: s.units for s in result.report.sublayers}
    assert units == [left[f"layers.{i}.{kind}"] for kind in ("attention", "ffn") for i in range(2)]
    dense = [count for kind in found.stacks[0].sublayers for count in kind.dense]
    assert dense == [count for kind in inspect(llama).stacks[0].sublayers for count in kind.units]
    code, text, _ = run("inspect", tmp_path / "small")
    assert code == 0
    assert f" of {dense[0]} groups of 16 columns" in text
    assert "% removed" in text
    # the masks of another model tell nothing, nor do damaged ones
    for text in ('{"layers.0.attention": "1111111"}', "{", "[1]", '{"layers.0.attention": 3}'):
        (tmp_path / "small" / "masks.json").write_text(text)
        assert all(kind.dense == [] for kind in inspect(tmp_path / "small").stacks[0].sublayers)


def test_the_command_line(llama: Path, tmp_path: Path) -> None:
    code, text, _ = run("inspect", llama, "--json-file", tmp_path / "found.json")
    assert code == 0
    assert "found by running it, and proved on a batch" in text
    assert "attention: 2 groups of 16 columns" in text
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads((tmp_path / "found.json").read_text())["stacks"][0]["layers"] == 2
    code, _, errors = run("inspect", tmp_path / "none")
    assert code == 2
    assert errors.strip().splitlines()[-1].startswith("faster-pruner: error: ")


def test_a_report_says_what_stayed_whole() -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2))
    ids = torch.randint(4, 64, (6, 7), generator=torch.Generator().manual_seed(0))
    report = prune_model(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], macs=0.7).report
    said = [warning for warning in report.warnings if warning.startswith("left whole: ")]
    assert any("model.layers.0-1.mlp.experts" in warning and "one for each expert" in warning for warning in said)
