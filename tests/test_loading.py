"""The ways to open a pruned folder, where faster-pruner is imported and (in a process of its own) where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import tiny
from faster_pruner import surgery
from faster_pruner.capture import inference
from faster_pruner.checkpoint import load, mark_as_pruned, opens_with_stock_class, register, write_checkpoint
from faster_pruner.checkpoint.remote import MODULE
from faster_pruner.errors import CheckpointError
from faster_pruner.families import FAMILIES, resolve

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 9, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1] * 3 + [0]]),
}
AUTO = transformers.AutoModelForSequenceClassification

# Opens every folder in argv without faster-pruner and writes what happened beside it.
_CHILD = """
import json, sys, torch, transformers
from safetensors.torch import save_file
auto = transformers.AutoModelForSequenceClassification
inputs = {"input_ids": torch.tensor([[2, 5, 9, 3], [2, 7, 3, 0]]),
          "attention_mask": torch.tensor([[1] * 4, [1] * 3 + [0]])}
for folder in sys.argv[1:]:
    said = {}
    for name, options in {"plain": {}, "ignoring": {"ignore_mismatched_sizes": True},
                          "trusting": {"trust_remote_code": True}}.items():
        try:
            model = auto.from_pretrained(folder, **options).eval()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
            continue
        with torch.no_grad():
            logits = model(**inputs).logits
        save_file({"logits": logits}, f"{folder}/{name}.safetensors.out")
        said[name] = "opened"
        if name == "trusting":
            model.save_pretrained(folder + "-again")
    open(f"{folder}/said.json", "w").write(json.dumps(said))
assert "faster_pruner" not in sys.modules
"""


def make(folder: Path, family: str, selection: dict[str, torch.Tensor]) -> torch.Tensor:
    """Save a pruned checkpoint; returns its logits."""
    model = tiny.make_model(family)
    surgery.prune_units(model, FAMILIES[family], selection)
    mark_as_pruned(model, FAMILIES[family])
    folder.mkdir()
    write_checkpoint(folder, model, tiny.make_tokenizer(), dtype=torch.float32)
    with inference(model):
        return model(**INPUTS).logits


ODD = {
    "layers.0.attention": torch.tensor([0, 2]),
    "layers.0.ffn": torch.arange(17),
    "layers.1.attention": torch.arange(0),
    "layers.1.ffn": torch.arange(0),
}
UNIFORM = {"layers.0.ffn": torch.arange(3, 20), "layers.1.ffn": torch.arange(17)}


def test_without_faster_pruner(tmp_path: Path) -> None:
    expected: dict[str, torch.Tensor] = {}
    for family in sorted(FAMILIES):
        for name, selection in (("odd", ODD), ("uniform", UNIFORM)):
            expected[f"{family}-{name}"] = make(tmp_path / f"{family}-{name}", family, selection)
    command = [sys.executable, "-c", _CHILD, *(str(tmp_path / name) for name in expected)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    for name, logits in expected.items():
        folder = tmp_path / name
        said = json.loads((folder / "said.json").read_text())
        assert said["trusting"] == "opened"
        assert torch.allclose(load_file(folder / "trusting.safetensors.out")["logits"], logits, atol=1e-6)
        if name.endswith("uniform"):
            assert said["plain"] == "opened"
            assert torch.allclose(load_file(folder / "plain.safetensors.out")["logits"], logits, atol=1e-6)
            assert not (folder / f"{MODULE}.py").exists()
        else:
            # never opened with layers that were initialised anew
            assert "per-layer attribute" in said["plain"]
            assert "per-layer attribute" in said["ignoring"]
            assert len((folder / f"{MODULE}.py").read_text().splitlines()) < 110
        again = load(tmp_path / f"{name}-again")
        with inference(again):
            assert torch.allclose(again(**INPUTS).logits, logits, atol=1e-6)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_with_faster_pruner_imported_the_auto_classes_open_it(family: str, tmp_path: Path) -> None:
    logits = make(tmp_path / "odd", family, ODD)
    for options in ({}, {"dtype": torch.float32}, {"trust_remote_code": True}):
        model = AUTO.from_pretrained(tmp_path / "odd", **options)
        assert type(model).__module__.startswith("transformers.")
        assert [s.units for s in resolve(model, FAMILIES[family])] == [2, 17, 0, 0]
        with inference(model):
            # eager attention there, torch's fused one here
            assert torch.allclose(model(**INPUTS).logits, logits, atol=1e-6)
    found, info = AUTO.from_pretrained(tmp_path / "odd", output_loading_info=True)
    assert info["missing_keys"] == set()
    assert type(found) is type(model)


def test_dense_models_pass_through_the_auto_classes_untouched(checkpoint: Path) -> None:
    register()
    model = AUTO.from_pretrained(checkpoint)
    assert type(model) is transformers.BertForSequenceClassification
    assert type(AUTO.from_config(model.config)) is transformers.BertForSequenceClassification
    assert type(transformers.AutoModel.from_pretrained(checkpoint)) is transformers.BertModel


def test_a_hostile_config_is_refused_by_the_auto_classes_too(tmp_path: Path) -> None:
    make(tmp_path / "odd", "bert", ODD)
    path = tmp_path / "odd" / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["faster_pruner"]["per_layer_config"]["0"]["intermediate_size"] = 10**12
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot have 'intermediate_size'"):
        AUTO.from_pretrained(tmp_path / "odd")


def test_which_sizes_the_stock_class_expresses() -> None:
    model = tiny.make_model()
    family = FAMILIES["bert"]
    surgery.prune_units(model, family, {"layers.0.ffn": torch.arange(9)})
    mark_as_pruned(model, family)
    assert not opens_with_stock_class(model, family)
    surgery.prune_units(model, family, {"layers.1.ffn": torch.arange(9)})
    mark_as_pruned(model, family)
    assert opens_with_stock_class(model, family)
    assert model.config.intermediate_size == 9
    surgery.prune_units(model, family, {f"layers.{i}.attention": torch.arange(2) for i in range(2)})
    mark_as_pruned(model, family)
    assert not opens_with_stock_class(model, family)
