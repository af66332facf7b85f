"""Families that a checkpoint states, and somebody has edited: one clear line, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from badness import bad_input
from faster_pruner import load, prune_model
from faster_pruner.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose family was found by running it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("families") / "llama"
    batches = [{"input_ids": torch.randint(0, 64, (6, 9))} for _ in range(4)]
    prune_model(LlamaForCausalLM(LlamaConfig(**SIZES)).eval(), batches, macs=0.6).save(folder)
    return folder


def stack(config: dict[str, Any]) -> dict[str, Any]:
    return config["faster_pruner"]["family"]["stacks"][0]


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no such stream": (lambda c: stack(c)["sublayers"][0].update(stream="nowhere"), "has no attribute `nowhere`"),
    "a stream that is no module": (lambda c: stack(c)["sublayers"][0].update(stream="forward"), "is not an nn.Module"),
    "no such branch": (lambda c: stack(c)["sublayers"][0].update(branch="nowhere"), "has no attribute `nowhere`"),
    "no such norm": (lambda c: stack(c)["sublayers"][0].update(norm="nowhere"), "has no attribute `nowhere`"),
    "no such config": (lambda c: stack(c).update(config="text_config"), "has no 'text_config'"),
    "another projection": (lambda c: stack(c)["sublayers"][0].update(projection="mlp"), "has no attribute 'weight'"),
    "no family": (lambda c: c["faster_pruner"].pop("family"), "neither it nor the table"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_family_that_is_not_the_models(edit: str, pruned: Path, tmp_path: Path) -> None:
    change, message = EDITS[edit]
    shutil.copytree(pruned, tmp_path / "edited")
    config = json.loads((pruned / "config.json").read_text())
    change(config)
    (tmp_path / "edited" / "config.json").write_text(json.dumps(config))
    bad_input(f"family: {edit}")
    with pytest.raises(CheckpointError, match=message) as raised:
        load(tmp_path / "edited")
    assert "\n" not in str(raised.value)
