"""Tiny checkpoints of every kind, with data for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering, LlamaConfig, LlamaForCausalLM

import colours
import sentences
import sounds
import tiny
from faster_pruner import Data


def save_llama(folder: Path, **sizes: Any) -> Path:
    """A Llama that nobody has described, with grouped heads, and a tokenizer."""
    usual = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=tiny.VOCABULARY, num_key_value_heads=2, **{**usual, **sizes})
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


def save_text(file: Path, rows: int = 400) -> Data:
    """Made-up text."""
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randint(0, 90, (rows, 6), generator=generator).tolist()
    file.write_text("".join(" ".join(f"w{i}" for i in row) + "\n" for row in numbers))
    return Data(file=file)


def classifier(folder: Path) -> tuple[Path, Data]:
    """A tiny BERT, stored in half precision."""
    model = tiny.save_checkpoint(folder / "model", dtype=torch.float16)
    return model, Data(task="sst2", folder=tiny.save_rows(folder / "data", "sst2"))


def decoder(folder: Path) -> tuple[Path, Data]:
    """A tiny Llama whose embeddings are its head, too."""
    return save_llama(folder / "model", tie_word_embeddings=True), save_text(folder / "text.txt")


def images(folder: Path) -> tuple[Path, Data]:
    """A tiny ViT."""
    return colours.save_checkpoint(folder / "model"), Data(folder=colours.save_images(folder / "images"))


def audio(folder: Path) -> tuple[Path, Data]:
    """A tiny model of sounds, with convolutions."""
    return sounds.save_checkpoint(folder / "model"), Data(folder=sounds.save_rows(folder / "sounds"))


def tagger(folder: Path) -> tuple[Path, Data]:
    """A tiny token classifier."""
    tiny.save_task(folder, tiny.make_tagger(), tiny.make_tagged(40, 0), tiny.make_tagged(24, 1))
    return folder / "model", Data(folder=folder / "data")


def answering(folder: Path) -> tuple[Path, Data]:
    """A tiny model that answers questions."""
    model = tiny.make_model(auto=AutoModelForQuestionAnswering)
    tiny.save_task(folder, model, tiny.make_questions(40, 0), tiny.make_questions(24, 1))
    return folder / "model", Data(folder=folder / "data")


def embedding(folder: Path) -> tuple[Path, Data]:
    """A tiny folder of sentence-transformers."""
    file = sentences.save_texts(folder / "texts.txt", sentences.make_texts(80))
    return sentences.save_folder(folder / "model", dense=True), Data(file=file)


def reranker(folder: Path) -> tuple[Path, Data]:
    """A tiny classifier of one logit, and pairs."""
    texts = sentences.make_texts(100)
    rows: list[dict[str, Any]] = [{"query": texts[i % 20], "text": text} for i, text in enumerate(texts)]
    tiny.write_jsonl(folder / "pairs.jsonl", rows)
    return tiny.save_checkpoint(folder / "model", labels=1), Data(task="text-ranking", file=folder / "pairs.jsonl")


KINDS: dict[str, Callable[[Path], tuple[Path, Data]]] = {
    made.__name__: made for made in (classifier, decoder, images, audio, tagger, answering, embedding, reranker)
}
