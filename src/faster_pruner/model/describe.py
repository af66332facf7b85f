"""What of a model can be pruned: by the table, or by looking at it and proving what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from faster_pruner.data.batches import MASK_KEY, rows_at
from faster_pruner.errors import NumericalError, UnsupportedModelError
from faster_pruner.model.detection.detect import detect
from faster_pruner.model.detection.proof import proved
from faster_pruner.model.passes import called, inference, tensors_in
from faster_pruner.model.spec import Family, Sublayer, resolve
from faster_pruner.model.table import FAMILIES, family_of
from faster_pruner.options import AttentionUnit

# Where a description comes from: a row of the table, a look at the model, or the checkpoint itself, which was looked at
# when it was pruned.
Origin = Literal["table", "detected", "recorded"]

_BY_HAND = "a family can also be written by hand: see docs/families.md (add a family)"
# Rows that a model is run on to find out what it consists of.
_ROWS = 3


@dataclass(frozen=True)
class Description:
    """What of a model can be pruned.

    Attributes:
        sublayers: at their present sizes, in the order of the family.
        origin: who says so.
        left: by path or name, what stays whole, and why.
    """

    sublayers: list[Sublayer]
    origin: Origin
    left: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def family(self) -> Family:
        """The family that the sublayers are of."""
        return family_of_all(self.sublayers)


def family_of_all(sublayers: Sequence[Sublayer]) -> Family:
    """The family that sublayers were resolved from."""
    return Family(stacks=tuple(dict.fromkeys(sublayer.stack for sublayer in sublayers)))


def described(config: Any, sublayers: list[Sublayer]) -> Description:
    """Sublayers that need not be looked for: the table says what they are, or the checkpoint's config does."""
    return Description(sublayers, "recorded" if family_of(config) != family_of_all(sublayers) else "table")


def describe(model: nn.Module, inputs: Mapping[str, Tensor], attention_unit: AttentionUnit = "group") -> Description:
    """Describe a dense model: by the table where it has a row, else by running it.

    Args:
        model: in float32.
        inputs: a batch that it can be called with; of more than a few rows the first are taken.
        attention_unit: as in `Method`.

    Raises:
        DataError: it cannot be run on these inputs.
        NumericalError: it returns NaN.
        UnsupportedModelError: nothing of it can be pruned.
    """
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type in FAMILIES:
        return Description(resolve(model, FAMILIES[model_type]), "table")
    few = _few_rows(inputs)
    with inference(model):
        returned = called(model, few)
        try:
            found = detect(model, few, attention_unit)
            family, dropped = proved(model, found.family, few)
        except UnsupportedModelError as error:
            if any(bool(tensor.isnan().any()) for tensor in tensors_in(returned)):
                # nothing is equal to it, so nothing can be proved
                raise NumericalError(
                    f"a {type(model).__name__} returns NaN on {', '.join(few)}: its weights or inputs have such "
                    "values; mend them, then prune"
                ) from error
            raise UnsupportedModelError(f"{error}; {_BY_HAND}") from error
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # the model's own code again, on copies of a row or with parts of it cut
            reason = f"{type(model).__name__} cannot be looked at piece by piece: {_reason(error)}"
            raise UnsupportedModelError(f"{reason}; {_BY_HAND}") from error
    return by_unit(Description(resolve(model, family), "detected", {**found.left, **dropped}), attention_unit)


def by_unit(found: Description, attention_unit: AttentionUnit) -> Description:
    """A description, where it has the attention units that are asked for.

    Raises:
        UnsupportedModelError: query heads are asked for, and groups are all there is.
    """
    grouped = [s.name for s in found.sublayers if s.spec.mixes_tokens and s.spec.unit == "group"]
    if attention_unit == "head" and grouped:
        before = " it was pruned by groups before, or" if found.origin == "recorded" else ""
        raise UnsupportedModelError(
            f"query heads cannot go one by one from the groups of {grouped[0]}:{before} one matrix computes them with "
            "their keys and values; prune it by groups",
            option="attention_unit",
        )
    return found


def _reason(error: Exception) -> str:
    """What a model's code says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _few_rows(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The longest rows of a batch: the first of them has no padding that the others do not have."""
    rows = next(iter(inputs.values())).shape[0]
    mask = inputs.get(MASK_KEY)
    lengths = torch.zeros(rows) if mask is None else mask.flatten(1).sum(dim=1).float().cpu()
    return rows_at(inputs, lengths.argsort(descending=True, stable=True)[:_ROWS], rows)
