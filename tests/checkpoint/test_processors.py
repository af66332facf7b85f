"""Every model opens with the processor that its main input needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

import colours
import tiny
from badness import bad_input
from faster_pruner.checkpoint import processors
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.processors import open_processor
from faster_pruner.errors import CheckpointError, OptionError, UnsupportedModelError

CPU = torch.device("cpu")


def test_an_image_processor(tmp_path: Path) -> None:
    opened = open_checkpoint(colours.save_checkpoint(tmp_path), device=CPU)
    picture = colours.make_image("red", 0)
    found = opened.processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(found, colours.make_processor()(images=[picture], return_tensors="pt")["pixel_values"])
    assert not hasattr(opened, "tokenizer")


def test_a_feature_extractor(tmp_path: Path) -> None:
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    config = Wav2Vec2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.num_conv_pos_embedding_groups = 1
    with torch.device("meta"):
        model = Wav2Vec2ForSequenceClassification(config)
    assert open_processor(str(tmp_path), model).sampling_rate == 8000


def test_a_checkpoint_without_what_it_needs(tmp_path: Path) -> None:
    bad_input("no image processor")
    colours.make_vit().save_pretrained(tmp_path / "model")
    # a tokenizer is no help
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"model' has no image processor: Can't load image processor") as caught:
        open_checkpoint(tmp_path / "model", device=CPU)
    assert "\n" not in str(caught.value)
    for damaged in ("{", "[]", '"a"', "\xff"):
        bad_input(f"an image processor {damaged}")
        (tmp_path / "model" / "preprocessor_config.json").write_text(damaged, encoding="latin-1")
        with pytest.raises(CheckpointError, match="has no image processor"):
            open_checkpoint(tmp_path / "model", device=CPU)


def test_code_of_a_folder_is_never_run(tmp_path: Path) -> None:
    colours.make_vit().save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}'
    )
    # transformers takes the one that belongs to the model type
    assert type(open_checkpoint(tmp_path, device=CPU).processor) is type(colours.make_processor())


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "find_spec", lambda name: None)
    with pytest.raises(
        OptionError, match=r"images need Pillow, which is not installed; install faster-pruner\[vision\]"
    ):
        open_checkpoint(colours.save_checkpoint(tmp_path), device=CPU)


def test_a_model_of_something_else(tmp_path: Path) -> None:
    bad_input("a model of robots' states")
    model = colours.make_vit()
    model.main_input_name = "past_values"
    with pytest.raises(
        UnsupportedModelError, match="takes 'past_values'; models of text, images and sound are supported"
    ):
        open_processor(str(tmp_path), model)


def test_a_model_without_a_table_of_tokens_takes_any_tokenizer(tmp_path: Path) -> None:
    class Hashing:
        main_input_name = "input_ids"
        config = tiny.CONFIGS["bert"]

        def get_input_embeddings(self) -> None:
            raise NotImplementedError

    tiny.make_tokenizer().save_pretrained(tmp_path)
    assert len(open_processor(str(tmp_path), Hashing())) == tiny.VOCABULARY
