"""Every model that the contract of a family holds for: one per row of the table, and the made-up ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tiny
from faster_pruner.checkpoint.saving import write_checkpoint
from faster_pruner.data.batches import Batch
from faster_pruner.model.passes import called
from faster_pruner.model.reading import Predict
from faster_pruner.model.shrink import shrink
from faster_pruner.model.spec import Family, Sublayer, resolve
from faster_pruner.model.table import FAMILIES
from made_up import MADE_UP
from made_up_modules import VOCABULARY

NAMES = [*sorted(tiny.CONFIGS), *sorted(MADE_UP)]
# Those whose sublayers run once in a forward.
ONCE = [name for name in NAMES if name != "repeated"]

_BERT_JOINED = {"layers.attention": "attention.output.LayerNorm", "layers.ffn": "output.LayerNorm"}
_JOINED: dict[str, Mapping[str, str]] = {
    "bert": _BERT_JOINED,
    "roberta": _BERT_JOINED,
    "distilbert": {"layers.attention": "sa_layer_norm", "layers.ffn": "output_layer_norm"},
}


@dataclass(frozen=True)
class Case:
    """A model and all that is known of it.

    Attributes:
        model: as it is built, with weights large enough for every unit to matter.
        family: of it.
        sublayers: in the order of the family.
        joined: see `made_up.MadeUp`.
    """

    model: nn.Module
    family: Family
    sublayers: list[Sublayer]
    joined: Mapping[str, str]

    def joined_at(self, sublayer: Sublayer) -> str:
        """Path of the module that is called with what the branch has joined; empty where nothing is."""
        inside = self.joined.get(".".join(sublayer.alike), "")
        return sublayer.prefix + inside if inside else ""

    def shrunk(self, selection: Mapping[str, Tensor]) -> Case:
        """A copy without the units that the selection does not keep."""
        model = copy.deepcopy(self.model)
        smaller = [s.resized(shrink(model, s.parts, selection[s.name])) for s in self.sublayers]
        return Case(model, self.family, smaller, self.joined)


def make(name: str, *, seed: int = 0) -> Case:
    """A case by name."""
    if name in FAMILIES:
        model: nn.Module = tiny.make_model(name, seed=seed)
        family, joined = FAMILIES[name], _JOINED[name]
    else:
        torch.manual_seed(seed)
        made = MADE_UP[name]
        model, family, joined = randomise(made.build()), made.family, made.joined
    return Case(model, family, resolve(model, family), joined)


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Give a made-up model weights large enough for every unit to matter."""
    for name, parameter in model.named_parameters():
        if "norm" not in name and "after" not in name:
            parameter.normal_(0.0, 0.3)
    return model.eval()


def inputs_of(name: str, *, seed: int = 0, rows: int = 3, length: int = 7, memory: int = 5) -> dict[str, Tensor]:
    """What a case is called with: rows of different lengths, the first one without padding."""
    generator = torch.Generator().manual_seed(seed)
    words = tiny.VOCABULARY if name in FAMILIES else VOCABULARY

    def tokens(most: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(4, words, (rows, most), generator=generator)
        real = torch.arange(most)[None, :] < (most - torch.arange(rows))[:, None].clamp(min=2)
        return ids * real, real.long()

    ids, mask = tokens(length)
    found = {"input_ids": ids, "attention_mask": mask}
    if name == "towers":
        found["pixels"] = torch.randn(rows, 4, 5, generator=generator)
    if name == "encoder-decoder":
        found |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        found["input_ids"], found["attention_mask"] = tokens(memory)
    return found


def reading_of(values: Callable[[Any, Batch], Tensor]) -> Predict:
    """Predictions that are all read, in one part, from what a model returns for a batch."""
    return lambda model, batch: [values(called(model, batch.inputs), batch)]


def batch_of(inputs: dict[str, Tensor]) -> Batch:
    """A batch without labels."""
    return Batch(inputs=inputs, rows=torch.arange(next(iter(inputs.values())).shape[0]), labels=None)


def everything(sublayers: list[Sublayer]) -> dict[str, Tensor]:
    """A selection that keeps all units."""
    return {s.name: torch.arange(s.units) for s in sublayers}


def uneven(sublayers: list[Sublayer]) -> dict[str, Tensor]:
    """A different number of units in every sublayer, not the first ones."""
    every = {s.name: torch.arange(s.units) for s in sublayers}
    # every second unit goes, or every third
    return {name: u[(u + place) % (2 + place // 2 % 2) != 0] for place, (name, u) in enumerate(every.items())}


def emptied(sublayers: list[Sublayer], names: set[str]) -> dict[str, Tensor]:
    """A selection that keeps nothing of the named sublayers, or as little as they may have."""
    return {s.name: torch.arange(s.spec.least if s.name in names else s.units) for s in sublayers}


def masks_of(selection: Mapping[str, Tensor], sublayers: list[Sublayer]) -> dict[str, Tensor]:
    """Zeros and ones that say the same as a selection."""
    return {s.name: torch.zeros(s.units).index_fill(0, selection[s.name], 1.0) for s in sublayers}


def logits_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """[B, C], without gradients."""
    with torch.no_grad():
        return model(**inputs).logits


def save(case: Case, folder: Path) -> Path:
    """Write a case of a row of the table as a checkpoint, with a tokenizer."""
    folder.mkdir(parents=True)
    write_checkpoint(folder, case.model, case.sublayers, tiny.make_tokenizer(), dtype=torch.float32)
    return folder
