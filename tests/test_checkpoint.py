"""Saving, reopening, verifying; hostile and damaged checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from faster_pruner import surgery
from faster_pruner.checkpoint import (
    load,
    mark_as_pruned,
    open_checkpoint,
    verify,
    write_checkpoint,
)
from faster_pruner.errors import CheckpointError, UnsupportedModelError, VerificationError
from faster_pruner.families import family_of, resolve

CPU = torch.device("cpu")


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A saved pruned checkpoint with different sizes in every layer."""
    model = tiny.make_model()
    surgery.prune_units(
        model,
        family_of("bert"),
        {
            "layers.0.attention": torch.tensor([0, 2]),
            "layers.0.ffn": torch.arange(17),
            "layers.1.ffn": torch.arange(9),
        },
    )
    mark_as_pruned(model, family_of("bert"))
    folder = tmp_path / "pruned"
    folder.mkdir()
    write_checkpoint(folder, model, tiny.make_tokenizer(), dtype=torch.float32)
    return folder


def edit(folder: Path, **changes: Any) -> Path:
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def sizes(**changes: Any) -> dict[str, Any]:
    """Metadata as `mark_as_pruned` writes it, with changes to layer 0."""
    return {"format": 1, "per_layer_config": {"0": {"num_attention_heads": 2, "intermediate_size": 17, **changes}}}


def test_load_gives_the_stock_class_with_smaller_linears(pruned: Path) -> None:
    model = load(pruned)
    assert type(model) is transformers.BertForSequenceClassification
    assert [s.units for s in resolve(model, family_of("bert"))] == [2, 17, 3, 9]
    assert model.bert.encoder.layer[0].attention.self.query.out_features == 16
    assert not model.training


def test_a_loaded_model_works_in_a_pipeline_and_saves_itself(pruned: Path, tmp_path: Path) -> None:
    model = load(pruned)
    tokenizer = transformers.AutoTokenizer.from_pretrained(pruned)
    answer = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)("w1 w2")
    assert answer[0]["label"] in ("LABEL_0", "LABEL_1")
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    inputs = {"input_ids": torch.tensor([[2, 5, 3]])}
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_loaded_model_fine_tunes_with_trainer(pruned: Path, tmp_path: Path) -> None:
    model = load(pruned)
    rows = [{"input_ids": [2, 5 + i, 3], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(8)]
    before = model.classifier.weight.detach().clone()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert not torch.equal(model.classifier.weight, before)


def test_half_precision_checkpoints(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        folder = tiny.save_checkpoint(tmp_path / str(dtype), dtype=dtype)
        opened = open_checkpoint(str(folder), device=CPU)
        assert opened.dtype is dtype
        assert opened.model.dtype is torch.float32
        assert load(folder, dtype=dtype).dtype is dtype
        if not torch.cuda.is_available():
            assert load(folder).dtype is torch.float32


def test_verify_accepts_equal_and_refuses_different(pruned: Path) -> None:
    batches = tiny.make_batches(tiny.make_rows())
    model = load(pruned)
    assert "bit-equal on 12 rows" in verify(pruned, model, batches)
    with torch.no_grad():
        model.classifier.bias += 1e-6
    with pytest.raises(VerificationError, match="does not reproduce"):
        verify(pruned, model, batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"faster_pruner": {"format": 99, "per_layer_config": {}}}, "format 1"),
        ({"faster_pruner": "yes"}, "format 1"),
        ({"faster_pruner": {"format": 1}}, "per_layer_config is missing"),
        ({"faster_pruner": {"format": 1, "per_layer_config": {"7": {}}}}, "not one of the 2 layers"),
        ({"faster_pruner": {"format": 1, "per_layer_config": {"../x": {}}}}, "'../x' is not one of"),
        ({"faster_pruner": {"format": 1, "per_layer_config": {"/etc/passwd" * 1000: {}}}}, "is not one of"),
        ({"faster_pruner": {"format": 1, "per_layer_config": {"0": 3}}}, "not a mapping"),
        ({"faster_pruner": sizes(hidden_size=8)}, "'hidden_size' = 8"),
        ({"faster_pruner": sizes(intermediate_size=10**12)}, "'intermediate_size' = 1000000000000"),
        ({"faster_pruner": sizes(intermediate_size=-1)}, "= -1"),
        ({"faster_pruner": sizes(intermediate_size=True)}, "= True"),
        ({"faster_pruner": sizes(intermediate_size="17")}, "= 17"),
        ({"faster_pruner": sizes(intermediate_size=18)}, "do not fit config.json"),
        ({"architectures": ["os.system"]}, "os.system"),
        ({"architectures": None}, "not a supported bert class"),
        ({"model_type": "../../bert"}, "not supported"),
    ],
)
def test_hostile_configs_are_one_clear_error(pruned: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        load(edit(pruned, **changes))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_damaged_checkpoints_are_one_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(checkpoint, tmp_path / name)
        return tmp_path / name

    with pytest.raises(CheckpointError, match="does not exist"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="neither a local folder nor a model on the hub|no readable"):
        load("nobody/no-such-model")
    with pytest.raises(CheckpointError, match="do not fit"):
        load(edit(copy("shapes"), intermediate_size=39))
    with pytest.raises(CheckpointError, match="pruned_heads"):
        load(edit(copy("heads"), pruned_heads={"0": [1]}))
    with pytest.raises(CheckpointError, match=r"config\.json is not usable"):
        load(edit(copy("odd"), num_attention_heads=5))
    no_weights = copy("no-weights")
    (no_weights / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        load(no_weights)
    (no_weights / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        load(no_weights)
    broken = copy("broken-json")
    (broken / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no readable config\.json"):
        load(broken)


def test_weights_that_are_missing_or_not_finite_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    model = tiny.make_model()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[2, 2] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tiny.make_tokenizer().save_pretrained(tmp_path / "nan")
    with pytest.raises(CheckpointError, match=r"layer\.1\.output\.dense\.weight' has NaN"):
        open_checkpoint(str(tmp_path / "nan"), device=CPU)
    tiny.make_model().bert.save_pretrained(tmp_path / "headless")
    edit(tmp_path / "headless", architectures=["BertForSequenceClassification"])
    with pytest.raises(CheckpointError, match="lacks weights for"):
        load(tmp_path / "headless")
    tiny.make_model().save_pretrained(tmp_path / "no-tokenizer")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        open_checkpoint(str(tmp_path / "no-tokenizer"), device=CPU)
