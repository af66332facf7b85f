"""What is saved is what was in memory, bit for bit, and works like any transformers model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import cases
import tiny
from cases import Case, inputs_of, logits_of
from faster_pruner.checkpoint.opening import load, open_checkpoint
from faster_pruner.checkpoint.remote import MODULE
from faster_pruner.checkpoint.saving import round_weights, verify, weight_bytes, write_checkpoint
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.errors import OutputError, VerificationError
from faster_pruner.model.table import FAMILIES

CPU = torch.device("cpu")


def sizes_for(case: Case, kind: str) -> Case:
    """Different sizes, some of them empty; the same sizes as far as the stock class knows them; nothing at all."""
    selection = cases.uneven(case.sublayers)
    if kind == "partly empty":
        selection |= {name: torch.arange(0) for name in ("layers.1.attention", "layers.0.ffn")}
    if kind == "stock":
        selection = cases.everything(case.sublayers) | {
            f"layers.{i}.ffn": torch.arange(3 + i, 20 + i) for i in range(2)
        }
    if kind == "empty":
        selection = {s.name: torch.arange(0) for s in case.sublayers}
    return case.shrunk(selection)


@pytest.mark.parametrize("kind", ["uneven", "partly empty", "stock", "empty"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_saved_equals_reopened_bit_for_bit(family: str, kind: str, tmp_path: Path) -> None:
    case = sizes_for(cases.make(family), kind)
    folder = cases.save(case, tmp_path / "saved")
    reopened = load(folder)
    assert type(reopened) is type(case.model)
    assert not reopened.training
    reopened.set_attn_implementation("eager")
    assert torch.equal(logits_of(reopened, inputs_of(family)), logits_of(case.model, inputs_of(family)))
    # both the saved and the reopened model know their sizes
    assert sublayers_of(reopened) == case.sublayers == sublayers_of(case.model)
    opened = open_checkpoint(str(folder), device=CPU)
    assert opened.known == opened.describe().sublayers == case.sublayers
    assert opened.dtype is torch.float32
    assert len(opened.processor) == tiny.VOCABULARY
    assert (folder / f"{MODULE}.py").exists() == (kind != "stock")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_rounded_to_the_dtype_of_the_file_are_what_is_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    case = sizes_for(cases.make("bert"), "partly empty")
    round_weights(case.model, dtype)
    assert {p.dtype for p in case.model.parameters()} == {torch.float32}
    write_checkpoint(tmp_path, case.model, case.sublayers, None, dtype=dtype)
    reopened = load(tmp_path, dtype=torch.float32)
    reopened.set_attn_implementation("eager")
    assert torch.equal(logits_of(reopened, inputs_of("bert")), logits_of(case.model, inputs_of("bert")))
    assert load(tmp_path, dtype=dtype).dtype is dtype
    stored = sum(p.numel() for p in case.model.parameters()) * dtype.itemsize
    assert stored < weight_bytes(tmp_path) < stored + 20_000


def test_half_precision_checkpoints(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        folder = tiny.save_checkpoint(tmp_path / str(dtype), dtype=dtype)
        opened = open_checkpoint(str(folder), device=CPU)
        assert opened.dtype is dtype
        assert opened.model.dtype is torch.float32
        assert load(folder, dtype=dtype).dtype is dtype
        if not torch.cuda.is_available():
            assert load(folder).dtype is torch.float32


def test_verify_accepts_equal_and_refuses_different(tmp_path: Path) -> None:
    folder = cases.save(sizes_for(cases.make("bert"), "uneven"), tmp_path / "saved")
    batches = tiny.make_batches(tiny.make_rows())
    model = load(folder)
    assert "bit-equal on 12 rows" in verify(folder, model, batches)
    with torch.no_grad():
        model.classifier.bias += 1e-6
    with pytest.raises(VerificationError, match="does not reproduce"):
        verify(folder, model, batches)


def test_saving_changes_the_model_in_memory_in_nothing_but_its_config(tmp_path: Path) -> None:
    case = sizes_for(cases.make("bert"), "uneven")
    before = copy.deepcopy(case.model)
    write_checkpoint(tmp_path, case.model, case.sublayers, None, dtype=torch.float16)
    assert {p.dtype for p in case.model.parameters()} == {torch.float32}
    assert torch.equal(logits_of(case.model, inputs_of("bert")), logits_of(before, inputs_of("bert")))
    assert case.model.config.faster_pruner["sizes"] == {s.name: s.units for s in case.sublayers}


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    case = cases.make("bert")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_checkpoint(tmp_path, case.model, case.sublayers, None, dtype=torch.float32)


def test_a_checkpoint_that_is_saved_anew_at_stock_sizes_names_no_code(tmp_path: Path) -> None:
    odd = cases.save(sizes_for(cases.make("bert"), "uneven"), tmp_path / "odd")
    model = load(odd)
    kept = {s.name: torch.arange(s.units if s.spec.kind == "attention" else 9) for s in sublayers_of(model)}
    first = json.loads((odd / "config.json").read_text())
    assert first["auto_map"] == {"AutoModelForSequenceClassification": f"{MODULE}.BertForSequenceClassification"}
    smaller = Case(model, FAMILIES["bert"], sublayers_of(model), {}).shrunk(kept)
    again = json.loads((cases.save(smaller, tmp_path / "again") / "config.json").read_text())
    assert "auto_map" in again
    assert again["intermediate_size"] == 9
    stock = cases.save(sizes_for(cases.make("bert"), "stock"), tmp_path / "stock")
    plain = json.loads((stock / "config.json").read_text())
    assert "auto_map" not in plain
    assert "per_layer_config" not in plain
    assert plain["intermediate_size"] == 17
    assert type(transformers.BertForSequenceClassification.from_pretrained(stock)) is type(model)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load(cases.save(sizes_for(cases.make("bert"), "partly empty"), tmp_path / "model"))


def test_a_loaded_model_works_in_a_pipeline(model: Any, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    answer = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)("w1 w2")
    assert answer[0]["label"] in ("LABEL_0", "LABEL_1")


def test_a_loaded_model_fine_tunes_with_trainer(model: Any, tmp_path: Path) -> None:
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
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    assert not torch.equal(model.classifier.weight, before)
    trainer.save_model(str(tmp_path / "tuned"))
    tuned = load(tmp_path / "tuned")
    assert torch.equal(logits_of(tuned, inputs_of("bert")), logits_of(model.eval(), inputs_of("bert")))
