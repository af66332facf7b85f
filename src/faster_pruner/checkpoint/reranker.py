"""Folders of sentence-transformers' CrossEncoder: a sequence classifier of one score, and how the score is used.

Since version 5.4 a folder says so in the files of all of sentence-transformers' models, before that in config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from faster_pruner.checkpoint.layout import (
    LIMITS,
    SETTINGS,
    as_mapping,
    default_prompt,
    longest_text,
    read_settings,
    writes_messages,
)
from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.checkpoint.screening import read_json
from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.scoring import Scoring

_KIND = "CrossEncoder"
# Of config.json: of versions 4 and 5, and of those before.
_OWN, _ACTIVATION, _OLDEST = "sentence_transformers", "activation_fn", "sbert_ce_default_activation_function"


def scoring_of(place: str, config: Any) -> Scoring | None:
    """How a CrossEncoder uses the score of its model; None of any other checkpoint, and of several scores a pair.

    Args:
        place: local folder or hub id.
        config: of its model.

    Raises:
        CheckpointError: a file of settings that cannot be read.
        UnsupportedModelError: it writes its pairs with a chat template.
    """
    if getattr(config, "num_labels", None) != 1:
        return None
    settings, own = _read(place, SETTINGS), as_mapping(getattr(config, _OWN, None))
    oldest = getattr(config, _OLDEST, None)
    if settings.get("model_type") != _KIND and _ACTIVATION not in own and not isinstance(oldest, str):
        return None
    limits = _read(place, LIMITS)
    if writes_messages(limits):
        raise UnsupportedModelError(
            f"{place!r} is a CrossEncoder that writes its pairs with a chat template; supported are those that read a "
            "query and a text as a pair; prune this one in memory, on batches of your own (prune_model)"
        )
    activation = settings.get(_ACTIVATION) or own.get(_ACTIVATION) or oldest
    return Scoring(identity=_is_identity(activation), longest=longest_text(limits), prompt=default_prompt(settings))


def _is_identity(activation: Any) -> bool:
    """Whether a class of that path leaves scores alone; any but torch's own sentence-transformers passes over, too."""
    return isinstance(activation, str) and activation.startswith("torch.") and activation.endswith(".Identity")


def _read(place: str, name: str) -> dict[str, Any]:
    """The content of a settings file, local or of the hub; nothing where there is none. Raises CheckpointError."""
    if Path(place).is_dir():
        return read_settings(Path(place) / name)
    with quiet_transformers():
        found = cached_file(
            place,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return {} if found is None else read_json(Path(found))
