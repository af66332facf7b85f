"""Settings of CrossEncoder folders that strangers wrote: refused in one line, or passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.reranker import scoring_of
from faster_pruner.errors import CheckpointError, UnsupportedModelError
from faster_pruner.model.scoring import Scoring

SETTINGS = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (SETTINGS, "nonsense", CheckpointError, "it is not JSON"),
        (SETTINGS, "[]", CheckpointError, "it holds a list"),
        (
            "sentence_bert_config.json",
            json.dumps({"modality_config": {"message": {}}}),
            UnsupportedModelError,
            "chat template",
        ),
    ],
)
def test_settings_of_strangers_are_one_line(
    name: str, content: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    tiny.save_checkpoint(tmp_path, labels=1)
    (tmp_path / SETTINGS).write_text(json.dumps({"model_type": "CrossEncoder"}))
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(tmp_path, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": [], "default_prompt_name": "a"},
        {"prompts": {"a": 3}, "default_prompt_name": "a"},
        {"prompts": {"a": "b"}, "default_prompt_name": []},
        {"activation_fn": 7},
    ],
)
def test_settings_that_mean_nothing_are_passed_over(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text(json.dumps({"model_type": "CrossEncoder", **settings}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": "9", "modality_config": []}))
    assert scoring_of(str(tmp_path), tiny.make_model(labels=1).config) == Scoring()
