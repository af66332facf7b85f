"""The objective that goes with a model, by the auto class that opens it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.classes import auto_classes_of
from faster_pruner.objectives import classification
from faster_pruner.objectives.objective import Objective

# The task of rows that are described by their columns alone.
GENERIC_TASK = classification.TASK

_BY_AUTO_CLASS: dict[str, Callable[[Any], Objective]] = {
    classification.AUTO_CLASS: classification.objective_for,
}


def objective_of(model: Any) -> Objective:
    """The objective that a transformers model was made for, from its class and config.

    Raises:
        UnsupportedModelError: none is known for its class.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    for auto in auto_classes_of(name, str(getattr(config, "model_type", ""))):
        if auto in _BY_AUTO_CLASS:
            return _BY_AUTO_CLASS[auto](config)
    known = " or ".join("..." + auto.removeprefix("AutoModel") for auto in _BY_AUTO_CLASS)
    raise UnsupportedModelError(
        f"this is a {name}; a {known} is needed (any other model can be pruned from Python, for an objective of your "
        "own)"
    )
