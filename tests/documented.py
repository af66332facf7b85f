"""What the documentation speaks of, made small: the models, rows and texts that its commands and examples name.

A page's commands run as they stand, in a folder where these names exist. A command that names anything else fails.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import corpora
import sentences
import tiny

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("sh", "bash", "console")
_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the line that it begins at."""

    language: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = page.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 2) for m in _BLOCK.finditer(text)]


def commands_of(block: Block) -> list[tuple[int, list[str]]]:
    """Every command of a block, as (line of the page, words): comments left out, continued lines joined."""
    found: list[tuple[int, list[str]]] = []
    if block.language not in SHELL:
        return found
    line = block.line
    for text in block.text.replace("\\\n", "\\\r").split("\n"):
        for part in text.replace("\\\r", " ").removeprefix("$ ").split(" && "):
            words = shlex.split(part, comments=True)
            found += [(line, words)] if words else []
        line += 1 + text.count("\r")
    return found


def _classifier(place: Path) -> None:
    tiny.save_checkpoint(place)


def _one_logit(place: Path) -> None:
    tiny.save_checkpoint(place, labels=1)


def _tagger(place: Path) -> None:
    tiny.make_tagger().save_pretrained(place)
    tiny.make_tokenizer().save_pretrained(place)


def _encoder(place: Path) -> None:
    sentences.save_folder(place)


def _bare_encoder(place: Path) -> None:
    sentences.make_encoder().save_pretrained(place)
    tiny.make_tokenizer().save_pretrained(place)


def _encoder_with_pieces(place: Path) -> None:
    """An encoder whose tokenizer knows pieces of words, so that a vocabulary can be pruned."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    tokenizer = corpora.train("Unigram")
    config = XLMRobertaConfig(vocab_size=tokenizer.get_vocab_size(), type_vocab_size=1, **corpora.SIZES, **corpora.IDS)
    corpora.save(place, XLMRobertaModel(config), "Unigram")
    own = place.with_name(f"{place.name}-own")
    place.rename(own)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    made = SentenceTransformer(
        modules=[modules.Transformer(str(own)), modules.Pooling(24, "mean"), modules.Normalize()],  # pyright: ignore[reportArgumentType]
        device="cpu",
    )
    made.save_pretrained(str(place))
    shutil.rmtree(own)


def _reranker(place: Path) -> None:
    from sentence_transformers import CrossEncoder

    own = place.with_name(f"{place.name}-own")
    _one_logit(own)
    CrossEncoder(str(own), device="cpu").save_pretrained(str(place))
    shutil.rmtree(own)


def _gpt(place: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48}
    ids = {"bos_token_id": 2, "eos_token_id": 3}
    GPT2LMHeadModel(GPT2Config(vocab_size=tiny.VOCABULARY, **sizes, **ids)).save_pretrained(place)
    _tokenizer_of_a_decoder().save_pretrained(place)


def _llama(place: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    _tokenizer_of_a_decoder().save_pretrained(place)


def _tokenizer_of_a_decoder() -> Any:
    tokenizer = tiny.make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def _vit(place: Path) -> None:
    import colours

    colours.save_checkpoint(place)


def _images(place: Path) -> None:
    import colours

    colours.save_images(place)


def _hearing(place: Path) -> None:
    import sounds

    sounds.save_checkpoint(place)


def _sounds(place: Path) -> None:
    import sounds

    sounds.save_rows(place)


def _lines(place: Path) -> None:
    place.write_text("".join(f"{text}\n" for text in sentences.make_texts(400)))


def _json_lines(place: Path) -> None:
    sentences.save_texts(place, sentences.make_texts(80))


def _sentences(place: Path) -> None:
    place.write_text("".join(f"{text}\n" for text in corpora.sentences("latin")))


def _rows(place: Path, make: Callable[[int, int], list[dict[str, Any]]]) -> None:
    """<place>/{train,validation}.jsonl."""
    tiny.write_jsonl(place / "train.jsonl", make(48, 0))
    tiny.write_jsonl(place / "validation.jsonl", make(24, 1))


def _labelled(place: Path) -> None:
    _rows(place, lambda count, seed: [_renamed(row) for row in tiny.make_texts("sst2", count, seed)])


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": row["sentence"], "label": row["label"], "body": row["sentence"], "topic": row["label"]}


def _entities(place: Path) -> None:
    _rows(place, tiny.make_tagged)


def _questions(place: Path) -> None:
    _rows(place, tiny.make_questions)


def _texts(place: Path) -> None:
    _rows(place, lambda count, seed: [{"text": text} for text in sentences.make_texts(8 * count, seed)])


def _pairs(place: Path) -> None:
    texts = sentences.make_texts(100)
    rows = [{"query": texts[i // 5], "text": text, "label": i % 3} for i, text in enumerate(texts)]
    tiny.write_jsonl(place, rows)


def _scored_pairs(place: Path) -> None:
    texts = sentences.make_texts(80)
    tiny.write_jsonl(place, [{"text": a, "other": b, "score": i % 5} for i, (a, b) in enumerate(pairwise(texts))])


def _collection(place: Path) -> None:
    tiny.save_collection(place)


def _answerer(place: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    tiny.make_model(auto=AutoModelForQuestionAnswering).save_pretrained(place)
    tiny.make_tokenizer().save_pretrained(place)


# What a page may name, and how it is made. `faster-pruner` commands and Python examples find these in their folder.
THINGS: dict[str, Callable[[Path], None]] = {
    "MODEL": _classifier,
    "my-classifier": _classifier,
    "my-scorer": _one_logit,
    "my-ner-model": _tagger,
    "my-qa-model": _answerer,
    "my-encoder": _bare_encoder,
    "all-MiniLM-L6-v2": _encoder,
    "multilingual-e5": _encoder_with_pieces,
    "my-reranker": _reranker,
    "my-gpt2": _gpt,
    "my-llama": _llama,
    "my-vit": _vit,
    "my-wav2vec2": _hearing,
    "rows": _labelled,
    "entities": _entities,
    "questions": _questions,
    "texts": _texts,
    "images": _images,
    "sounds": _sounds,
    "scifact": _collection,
    "corpus.txt": _lines,
    "corpus.jsonl": _json_lines,
    "sentences.txt": _sentences,
    "pairs.jsonl": _pairs,
    "scored.jsonl": _scored_pairs,
}

# Rows that a page takes from the hub: data set and configuration -> the rows of a split.
HUB: dict[tuple[str, str | None], Callable[[int, int], list[dict[str, Any]]]] = {
    ("nyu-mll/glue", "sst2"): lambda count, seed: tiny.make_texts("sst2", count, seed),
    ("nyu-mll/glue", "mrpc"): lambda count, seed: tiny.make_texts("mrpc", count, seed),
    ("owner/reviews", None): lambda count, seed: [_renamed(row) for row in tiny.make_texts("sst2", count, seed)],
}


def load_dataset(name: str, configuration: str | None = None, *, split: str) -> Any:
    """In place of the function of that name in the datasets library: what is not in `HUB` is not there."""
    import datasets

    sizes = {"train": 48, "validation": 24}
    if split not in sizes:
        raise ValueError(f"unknown split {split!r}")
    if (name, configuration) not in HUB:
        raise ConnectionError(f"{name} is not among the data sets that the tests know")
    return datasets.Dataset.from_list(HUB[name, configuration](sizes[split], int(split != "train")))


class World:
    """Makes everything once, and copies it into the folders of pages."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def made(self, name: str) -> Path:
        """One of them."""
        place = self._place / name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with torch.random.fork_rng():
                THINGS[name](place)
        return place

    def furnish(self, folder: Path, text: str) -> None:
        """Put into a folder what a page's text names."""
        for name in THINGS:
            if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text):
                made = self.made(name)
                (shutil.copytree if made.is_dir() else shutil.copyfile)(made, folder / name)
