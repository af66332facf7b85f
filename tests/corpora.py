"""A made-up corpus in two alphabets, and tokenizers of every kind that are trained on it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from faster_pruner import Columns, Data, PruneResult, prune

_LATIN, _CYRILLIC = (
    ("ba", "de", "fi", "go", "ku", "la", "me", "no", "pi", "ru", "sta", "tre"),
    ("ба", "де", "фи", "го", "ку", "ла", "ме", "но", "пи", "ру", "ста", "тре"),
)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# Sizes and ids of tiny models whose embeddings are pruned.
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
IDS: dict[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_BYTES = [f"<0x{i:02X}>" for i in range(256)]


@cache
def sentences(alphabet: str, count: int = 250) -> tuple[str, ...]:
    """Sentences of made-up words: `latin` or `cyrillic`."""
    syllables = _LATIN if alphabet == "latin" else _CYRILLIC
    draw = random.Random(alphabet)
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(150)]
    return tuple(" ".join(draw.choices(words, k=draw.randint(3, 9))) for _ in range(count))


@cache
def words(alphabet: str) -> tuple[str, ...]:
    """The words of those sentences."""
    return tuple(sorted({word for sentence in sentences(alphabet) for word in sentence.split()}))


def _trained(core: Tokenizer, trainer: Any) -> Tokenizer:
    core.train_from_iterator([*sentences("latin"), *sentences("cyrillic")], trainer)
    return core


def _word_piece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return _trained(core, trainers.WordPieceTrainer(vocab_size=500, special_tokens=list(SPECIAL), show_progress=False))


def _bpe() -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(core, trainers.BpeTrainer(vocab_size=500, special_tokens=list(SPECIAL), show_progress=False))


def _bpe_with_suffix() -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = list(SPECIAL)
    return _trained(
        core,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, end_of_word_suffix="</w>", show_progress=False),
    )


def _bpe_of_bytes() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = list(SPECIAL)
    return _trained(
        core, trainers.BpeTrainer(vocab_size=800, special_tokens=special, initial_alphabet=letters, show_progress=False)
    )


def _bpe_that_falls_back_to_bytes() -> Tokenizer:
    """Like Llama 2's: a whole text is one word, and what is no character of the vocabulary becomes its bytes."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [*SPECIAL, *_BYTES]
    core = _trained(core, trainers.BpeTrainer(vocab_size=750, special_tokens=special, show_progress=False))
    found = json.loads(core.to_str())
    found["added_tokens"] = [each for each in found["added_tokens"] if each["content"] not in _BYTES]
    core = Tokenizer.from_str(json.dumps(found))
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core


def _unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = list(SPECIAL)
    return _trained(
        core, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    )


_KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": _word_piece,
    "BPE": _bpe,
    "BPE with a suffix": _bpe_with_suffix,
    "BPE of bytes": _bpe_of_bytes,
    "BPE with byte fallback": _bpe_that_falls_back_to_bytes,
    "Unigram": _unigram,
}
KINDS = tuple(_KINDS)
# Whose tokenizers lose nothing of any text.
LOSSLESS = ("BPE of bytes", "BPE with byte fallback")


@cache
def _written(kind: str) -> str:
    core = _KINDS[kind]()
    ids = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    return core.to_str()


def train(kind: str) -> Tokenizer:
    """A tokenizer of both alphabets."""
    return Tokenizer.from_str(_written(kind))


def fast(kind: str) -> PreTrainedTokenizerFast:
    """The same as transformers has it."""
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=train(kind),
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def save(folder: Path, model: PreTrainedModel, kind: str, *, called: str | None = None) -> Path:
    """A checkpoint with such a tokenizer, opened by a class of the name that is given, if any."""
    model.save_pretrained(folder)
    fast(kind).save_pretrained(folder)
    if called is not None:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": called}))
        # as that class has it: some build their own post-processor
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def write_rows(folder: Path, *, validation: str = "latin") -> Data:
    """Rows in one alphabet to calibrate on, and in the same or another one to evaluate on."""
    folder.mkdir()
    for split, part in (("train", sentences("latin")[:48]), ("validation", sentences(validation)[48:72])):
        rows = "".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(part))
        (folder / f"{split}.jsonl").write_text(rows)
    return Data(folder=folder, columns=Columns(text="text", label="label"))


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that a folder holds beside reports, which tell how long things took."""
    told = ("result.json", "README.md", "report.html")
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in told
    }


def pruned(*arguments: Any, **options: Any) -> PruneResult:
    """What a run that prunes units gives."""
    result = prune(*arguments, **options)
    assert isinstance(result, PruneResult)
    return result
