"""Small models, tokenizers and rows that the tests make themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.data.batches import Batch, EncodedRows, pack
from faster_pruner.data.glue import GLUE
from faster_pruner.method.calibrated import Subject
from faster_pruner.objectives.objective import Objective
from faster_pruner.objectives.registry import objective_of

WORDS = [f"w{i}" for i in range(90)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = len(SPECIAL) + len(WORDS)

_SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "max_position_embeddings": 64}
# One two-layer config per family row.
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, **_SIZES),
    "roberta": RobertaConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, type_vocab_size=1, **_SIZES
    ),
    "distilbert": DistilBertConfig(dim=24, n_layers=2, n_heads=3, hidden_dim=40, **_SIZES),
}


def make_model(
    model_type: str = "bert",
    *,
    auto: Any = AutoModelForSequenceClassification,
    labels: int = 2,
    seed: int = 0,
    **changes: Any,
) -> PreTrainedModel:
    """A random model, by default a sequence classifier, whose weights are large enough for every unit to matter."""
    config = type(CONFIGS[model_type]).from_dict({**CONFIGS[model_type].to_dict(), **changes, "num_labels": labels})
    torch.manual_seed(seed)
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name and "layer_norm" not in name:
                parameter.normal_(0.0, 0.25)
    return model


def make_rows(count: int = 12, *, seed: int = 0, labels: int = 2, longest: int = 11) -> EncodedRows:
    """Random rows of different lengths with random labels."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (count,), generator=generator).tolist()
    tokens = [
        {"input_ids": torch.randint(len(SPECIAL), VOCABULARY, (length,), generator=generator).tolist()}
        for length in lengths
    ]
    if labels == 1:
        targets: list[Any] = torch.rand(count, generator=generator).tolist()
    else:
        targets = torch.randint(0, labels, (count,), generator=generator).tolist()
    return EncodedRows(tokens=tokens, labels=targets, padding={"input_ids": 0})


def make_batches(rows: EncodedRows, tokens_per_batch: int = 40) -> list[Batch]:
    """The rows, packed for the CPU."""
    return pack(rows, tokens_per_batch=tokens_per_batch, device=torch.device("cpu"))


def make_subject(model: PreTrainedModel, objective: Objective | None = None) -> Subject:
    """A model with all its sublayers, for what it was trained for unless told otherwise."""
    return Subject(model, sublayers_of(model), objective or objective_of(model))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `WORDS`."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_checkpoint(
    folder: Path, model_type: str = "bert", *, labels: int = 2, dtype: torch.dtype = torch.float32
) -> Path:
    """A tiny checkpoint with its tokenizer."""
    make_model(model_type, labels=labels).to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_texts(task: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Generated rows with the columns and labels of a GLUE task."""
    described = GLUE[task]
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        row: dict[str, Any] = {"idx": i}
        for column in filter(None, (described.text_column, described.pair_column)):
            length = int(torch.randint(3, 12, (), generator=generator))
            chosen = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
            row[column] = " ".join(WORDS[w] for w in chosen)
        classes = len(described.label_names)
        label = torch.randint(0, classes or 6, (), generator=generator).item()
        row[described.label_column] = float(label) if classes == 0 else int(label)
        rows.append(row)
    return rows


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object per line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_rows(folder: Path, task: str, *, train: int = 48, validation: int = 24) -> Path:
    """<folder>/<task>/{train,validation}.jsonl."""
    write_jsonl(folder / task / "train.jsonl", make_texts(task, train, 0))
    write_jsonl(folder / task / "validation.jsonl", make_texts(task, validation, 1))
    return folder


# Classes of a tiny model that names entities.
ENTITY_CLASSES = ("O", "B-A", "I-A", "B-B", "I-B")


def make_tagger(model_type: str = "bert", *, seed: int = 0) -> PreTrainedModel:
    """A random token classifier with the classes of entities."""
    model = make_model(model_type, auto=AutoModelForTokenClassification, labels=len(ENTITY_CLASSES), seed=seed)
    model.config.id2label = dict(enumerate(ENTITY_CLASSES))
    model.config.label2id = {name: i for i, name in enumerate(ENTITY_CLASSES)}
    return model


def make_tagged(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of words, some of several tokens, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        length = int(torch.randint(2, 9, (), generator=generator))
        chosen = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        tags = torch.randint(0, len(ENTITY_CLASSES), (length,), generator=generator).tolist()
        # the tokenizer splits at hyphens
        words = [f"{WORDS[w]}-{WORDS[w - 1]}" if w % 3 == 0 else WORDS[w] for w in chosen]
        rows.append({"id": str(i), "tokens": words, "ner_tags": tags})
    return rows


def make_questions(count: int, seed: int, *, unanswerable: bool = False, longest: int = 30) -> list[dict[str, Any]]:
    """Questions, contexts and the answers in them, in the hub's form of SQuAD."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        length = int(torch.randint(6, longest, (), generator=generator))
        words = [WORDS[w] for w in torch.randint(0, len(WORDS), (length,), generator=generator).tolist()]
        start = int(torch.randint(0, length - 3, (), generator=generator))
        text = " ".join(words[start : start + 1 + i % 3])
        answers = {"text": [text], "answer_start": [len(" ".join([*words[:start], ""]))]}
        if unanswerable and i % 3 == 0:
            answers = {"text": [], "answer_start": []}
        rows.append({"id": str(i), "question": " ".join(words[:3]), "context": " ".join(words), "answers": answers})
    return rows


def save_task(folder: Path, model: PreTrainedModel, train: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """<folder>/model and <folder>/data/{train,validation}.jsonl."""
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    write_jsonl(folder / "data" / "train.jsonl", train)
    write_jsonl(folder / "data" / "validation.jsonl", rows)


def save_collection(folder: Path, *, documents: int = 60, queries: int = 24, seed: int = 0) -> Path:
    """A retrieval folder: graded judgements of three documents for each query; a half trains, a half tests."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> str:
        return " ".join(WORDS[w] for w in torch.randint(0, len(WORDS), (length,), generator=generator).tolist())

    corpus = [{"_id": f"d{i}", "title": text(2) if i % 2 else "", "text": text(6)} for i in range(documents)]
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": text(4)} for i in range(queries)])
    (folder / "qrels").mkdir()
    for split, own in (("train", range(0, queries, 2)), ("test", range(1, queries, 2))):
        lines = ["query-id\tcorpus-id\tscore"]
        for i in own:
            chosen = torch.randperm(documents, generator=generator)[:3].tolist()
            lines += [f"q{i}\td{d}\t{score}" for d, score in zip(chosen, (2, 1, 0), strict=True)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder
