"""What people give by mistake: odd batches, wrapped models, images of too many shades. Nothing is taken in silence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
    ViTConfig,
    ViTForImageClassification,
)

import colours
import fresh
import tiny
from badness import bad_input
from command import run
from faster_pruner import Budget, CalibrationOptions, Data, evaluate, inspect, load, prune, prune_model
from faster_pruner.errors import BudgetError, CheckpointError, DataError, NumericalError, UnsupportedModelError

pytestmark = pytest.mark.usefixtures("quick_latency")
SMALL = CalibrationOptions(rows=32)
_SIZES: dict[str, Any] = {"vocab_size": tiny.VOCABULARY, "num_labels": 2, "eos_token_id": 3}
_CODING: dict[str, Any] = {"pad_token_id": 0, "decoder_start_token_id": 3}
BART = BartConfig(
    d_model=24,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=3,
    decoder_attention_heads=3,
    encoder_ffn_dim=40,
    decoder_ffn_dim=40,
    max_position_embeddings=64,
    **_CODING,
    **_SIZES,
)
T5 = T5Config(d_model=24, d_kv=8, num_heads=3, num_layers=1, num_decoder_layers=1, d_ff=40, **_CODING, **_SIZES)
LLAMA = LlamaConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, **_SIZES
)


def classifier(config: Any) -> Any:
    """A random model with a head."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval()


def batches(*, rows: int = 24, last: int = 3) -> list[dict[str, Tensor]]:
    """Token ids that end in one token, and their masks."""
    ids = torch.randint(4, tiny.VOCABULARY, (rows, 9))
    ids[:, -1] = last
    return [{"input_ids": ids[i : i + 6], "attention_mask": torch.ones(6, 9).long()} for i in range(0, rows, 6)]


def labelled(labels: Tensor) -> list[dict[str, Tensor]]:
    return [{**batch, "labels": labels} for batch in batches()]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same weights."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 2])], r"labels \[6, 3\] do not fit 6 predictions"),
        (torch.tensor([0, 1, 2, 3, 1, 1]), "a label is 3; the model has the classes 0 to 2"),
        (torch.full((6,), -100), "a label is -100"),
    ],
    ids=["one-hot", "too large", "ignored"],
)
def test_labels_that_do_not_fit(labels: Tensor, message: str) -> None:
    bad_input(f"labels {labels.tolist()}")
    with pytest.raises(DataError, match=message):
        prune_model(tiny.make_model(labels=3), labelled(labels), method="kwon2022")


def test_a_column_of_labels_is_what_transformers_takes_it_for() -> None:
    labels, model = torch.tensor([0, 1, 2, 0, 1, 2]), tiny.make_model(labels=3)
    torch.manual_seed(1)
    flat = prune_model(model, labelled(labels), method="kwon2022").model
    torch.manual_seed(1)
    assert same(flat, prune_model(model, labelled(labels[:, None]), method="kwon2022").model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[2].update(input_ids=b[2]["input_ids"][:, :0]), r"input_ids of batch 2 is of shape \[6, 0\]"),
        (lambda b: b[3].update(input_ids=b[3]["input_ids"] + 500), r"cannot be run on input_ids \[6, 9\].*index out"),
        (lambda b: b[0].update(input_ids=b[0]["input_ids"].float()), r"cannot be run on input_ids \[4, 9\]"),
    ],
    ids=["no tokens", "no such token", "no integers"],
)
def test_batches_that_a_model_cannot_take(change: Any, message: str) -> None:
    given = batches()
    change(given)
    bad_input(message)
    with pytest.raises(DataError, match=message):
        prune_model(tiny.make_model(), given)


def test_a_batch_without_a_mask_has_no_padding() -> None:
    given = batches()
    expected = prune_model(tiny.make_model(), given)
    del given[1]["attention_mask"]
    found = prune_model(tiny.make_model(), given)
    assert same(found.model, expected.model)
    assert found.report.macs_kept == expected.report.macs_kept


def test_embeddings_that_were_computed_under_gradients() -> None:
    model = tiny.make_model()
    embed: Any = model.get_input_embeddings()
    given = [{"inputs_embeds": embed(batch["input_ids"])} for batch in batches()]
    expected = prune_model(model, [{"inputs_embeds": each["inputs_embeds"].detach()} for each in given]).model
    assert same(prune_model(model, given).model, expected)


def test_a_compiled_model_is_the_model_inside() -> None:
    model, given = tiny.make_model(), batches()
    expected = prune_model(model, given).model
    found = prune_model(torch.compile(model), given).model
    assert type(found) is type(model)
    assert same(found, expected)
    inside = copy.deepcopy(model)
    inside.compile()
    assert same(prune_model(inside, given).model, expected)


def test_weights_that_nothing_can_be_computed_with() -> None:
    with torch.inference_mode():
        frozen = tiny.make_model()
    for model, reason in ((frozen, "inference_mode"), (tiny.make_model().to("meta"), "meta device")):
        bad_input(f"weights: {reason}")
        with pytest.raises(UnsupportedModelError, match=reason):
            prune_model(model, batches())


def test_weights_that_are_no_numbers() -> None:
    known, looked_at = tiny.make_model(labels=3), classifier(LLAMA)
    looked_at.config.pad_token_id = 0
    with torch.no_grad():
        known.get_parameter("bert.encoder.layer.0.intermediate.dense.weight")[0, 0] = torch.nan
        looked_at.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = torch.nan
    for model in (known, looked_at):
        bad_input(f"NaN in a {type(model).__name__}")
        with pytest.raises(NumericalError, match="NaN"):
            prune_model(model, batches())


def test_a_decoder_without_a_padding_token_says_what_to_do(tmp_path: Path) -> None:
    model = classifier(GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=64, **_SIZES))
    with pytest.raises(DataError, match="put a pad_token_id into its config") as raised:
        prune_model(model, batches())
    assert "batches of your own" not in str(raised.value)
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="put a pad_token_id into its config"):
        inspect(tmp_path)
    model.config.pad_token_id = 0
    assert prune_model(model, batches()).report.macs_kept <= 0.5


def test_rows_without_the_token_that_a_model_reads(tmp_path: Path) -> None:
    tiny.save_checkpoint(tmp_path / "bert")
    classifier(T5).save_pretrained(tmp_path / "t5")
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save_pretrained(tmp_path / "t5")
    data = Data(task="sst2", folder=tiny.save_rows(tmp_path / "data", "sst2"))
    bad_input("rows without eos")
    for verb in (
        lambda: prune(tmp_path / "t5", data, macs=0.7, calibration=SMALL),
        lambda: evaluate(tmp_path / "t5", data),
    ):
        with pytest.raises(DataError, match=r"T5ForSequenceClassification cannot be run on input_ids .*<eos>"):
            verb()


def test_two_classes_where_the_config_has_three_by_default(tmp_path: Path) -> None:
    # transformers writes no names of two classes, and its BART has three where none are written
    model = classifier(BART)
    result = prune_model(model, batches())
    result.save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    inputs = batches()[0]
    assert torch.equal(load(tmp_path / "out")(**inputs).logits, result.model(**inputs).logits)
    # what transformers wrote of the dense one does not open; what is said to help does
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match=r'let config.json say "num_labels": 2, or'):
        load(tmp_path / "dense")
    file = tmp_path / "dense" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_labels": 2}))
    assert torch.equal(load(tmp_path / "dense")(**inputs).logits, model(**inputs).logits)


def test_stock_sizes_are_sizes_that_plain_transformers_builds(tmp_path: Path) -> None:
    model = ViTForImageClassification(ViTConfig(**colours.CONFIG)).eval()
    given = [{"pixel_values": torch.randn(6, 3, 16, 16)} for _ in range(4)]
    with pytest.raises(BudgetError, match=r"ask for at least 0\.2\d* of the dense one"):
        # a head and eight neurons take more; told of the dense model, though a first round would leave something
        prune_model(model, given, macs=Budget(macs=0.15, allocation="stock"))
    result = prune_model(model, given, macs=Budget(macs=0.4, allocation="stock"))
    assert {s.unit for s in result.report.sublayers if s.units < s.units_before} == {"head", "neuron"}
    result.save(tmp_path / "out")
    torch.save((given[0], result.model(**given[0]).logits.detach()), tmp_path / "expected.pt")
    code = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1])\n"
        "inputs, expected = torch.load(sys.argv[2])\n"
        "assert torch.equal(model(**inputs).logits, expected)\n"
    )
    fresh.run(code, tmp_path / "out", tmp_path / "expected.pt")


def test_a_config_that_says_no_size_cannot_say_another_one() -> None:
    model = classifier(GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=64, pad_token_id=0, **_SIZES))
    bad_input("stock sizes of a GPT-2")
    with pytest.raises(BudgetError, match="'stock' can remove nothing"):
        prune_model(model, batches(), macs=Budget(macs=0.6, allocation="stock"))


def test_folders_of_images_may_be_links(tmp_path: Path) -> None:
    colours.save_checkpoint(tmp_path / "vit")
    data = colours.save_images(tmp_path / "data")
    expected = evaluate(tmp_path / "vit", Data(folder=data))
    (data / "validation" / "red").rename(tmp_path / "elsewhere")
    (data / "validation" / "red").symlink_to(tmp_path / "elsewhere")
    (data / "validation" / "blue" / "around").symlink_to(data)
    assert evaluate(tmp_path / "vit", Data(folder=data)) == expected


def test_images_of_more_shades_than_a_model_sees(tmp_path: Path) -> None:
    colours.save_checkpoint(tmp_path / "vit")
    data = colours.save_images(tmp_path / "data")
    shades = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24)
    Image.fromarray((shades // 2).astype(np.uint16)).save(data / "validation" / "red" / "few.png")
    assert evaluate(tmp_path / "vit", Data(folder=data))["validation"].rows == 25
    Image.fromarray(shades).save(data / "validation" / "red" / "many.png")
    bad_input("an image of 16 bits")
    with pytest.raises(DataError, match="shades of this image go from 0 to 479"):
        evaluate(tmp_path / "vit", Data(folder=data))


def test_rows_without_any_word(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"tokens": ["", " "], "ner_tags": [0, 0]}] * 12
    tiny.save_task(tmp_path, tiny.make_tagger(), tiny.make_tagged(40, 0), rows)
    bad_input("blank words only")
    with pytest.raises(DataError, match="no row has a word"):
        prune(tmp_path / "model", Data(folder=tmp_path / "data"), macs=0.5, calibration=SMALL)


def test_what_was_found_never_replaces_a_file_of_somebody_else(checkpoint: Path, tmp_path: Path) -> None:
    before = (checkpoint / "config.json").read_bytes()
    bad_input("inspect: figures into config.json")
    code, _, said = run("inspect", checkpoint, "--json-file", checkpoint / "config.json")
    assert (code, (checkpoint / "config.json").read_bytes()) == (2, before)
    assert "is not replaced" in said
    for _ in range(2):
        assert run("inspect", checkpoint, "--json-file", tmp_path / "found.json")[0] == 0
