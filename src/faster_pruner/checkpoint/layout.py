"""Where the parts of a folder of sentence-transformers lie.

`modules.json` lists modules. The first is the transformer, whose files lie in the folder itself, or as older versions
wrote them in a folder `0_Transformer` inside. The others (pooling, a Dense layer, normalisation) have folders of their
own. Of a model on the hub only these small files are fetched, and never a pickle or a copy for another runtime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download

from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.checkpoint.screening import read_json
from faster_pruner.errors import CheckpointError

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
# Settings of the transformer as a module; older versions name the file by the model's type.
LIMITS = "sentence_bert_config.json"
ANY_LIMITS = "sentence_*_config.json"
# What a module's folder holds; a module without weights has settings only.
MODULE_FILES = ("*.json", "model.safetensors")
# The same, and of a transformer in a folder of its own everything, on the hub.
ON_THE_HUB = (MODULES, SETTINGS, ANY_LIMITS, *(f"[0-9]*_*/{name}" for name in (*MODULE_FILES, "*.txt", "*.model")))
PACKAGE = "sentence_transformers"
_TRANSFORMER, _POOLING, _OF_EMBEDDINGS = "Transformer", "Pooling", "SentenceTransformer"
# The hub is waited for so long.
_HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Layout:
    """A folder of sentence-transformers on this machine.

    Attributes:
        root: the folder; of a model on the hub, its snapshot in the cache.
        modules: what it lists, the transformer first.
        embeds: whether it makes one vector of a text, as opposed to rerankers and sparse vectors.
    """

    root: Path
    modules: Sequence[Mapping[str, Any]]
    embeds: bool

    @property
    def inner(self) -> str:
        """Name of the folder inside that holds the transformer; empty where the folder itself does."""
        return str(self.modules[0]["path"])

    @property
    def transformer(self) -> Path:
        """Where config, weights and tokenizer of the transformer are."""
        return self.root / self.inner


def read_settings(file: Path) -> dict[str, Any]:
    """The content of a settings file; nothing where there is none. Raises CheckpointError."""
    return read_json(file) if file.is_file() else {}


def as_mapping(value: object) -> Mapping[str, Any]:
    """A mapping as it is; nothing of what is none."""
    return value if isinstance(value, Mapping) else {}


def prompt_named(settings: Mapping[str, Any], name: object) -> str:
    """The prompt of a name; nothing where there is none that is a text."""
    found = as_mapping(settings.get("prompts")).get(name) if isinstance(name, str) else None
    return found if isinstance(found, str) else ""


def default_prompt(settings: Mapping[str, Any]) -> str:
    """What is put in front of texts where nobody names a prompt."""
    return prompt_named(settings, settings.get("default_prompt_name"))


def longest_text(limits: Mapping[str, Any]) -> int | None:
    """Most tokens of a text, or of a pair; None where nobody says."""
    found = limits.get("max_seq_length")
    return found if type(found) is int and found > 0 else None


def writes_messages(limits: Mapping[str, Any]) -> bool:
    """Whether texts are written with a chat template."""
    return "message" in as_mapping(limits.get("modality_config"))


def kind_of(module: Mapping[str, Any]) -> str:
    """What a module is, by the name of its class."""
    return str(module.get("type", "")).rpartition(".")[2]


def is_own(module: Mapping[str, Any]) -> bool:
    """Whether a module is one of sentence-transformers' own, in a folder right inside or in the folder itself."""
    path = str(module["path"])
    return str(module.get("type", "")).startswith(f"{PACKAGE}.") and Path(path).name == path and path != ".."


def read_layout(place: str) -> Layout | None:
    """The layout of a local folder or of a model on the hub; None for one that sentence-transformers has not written.

    Raises:
        CheckpointError: its list of modules cannot be used.
    """
    root = Path(place) if Path(place).is_dir() else _fetched(place)
    if root is None or not (root / MODULES).is_file():
        return None
    modules = _modules(place, root)
    settings = read_settings(root / SETTINGS)
    kinds = [kind_of(each) for each in modules]
    embeds = (
        kinds[0] == _TRANSFORMER
        and _POOLING in kinds
        and str(settings.get("model_type") or _OF_EMBEDDINGS) == _OF_EMBEDDINGS
    )
    return Layout(root, modules, embeds)


def _modules(place: str, root: Path) -> list[dict[str, Any]]:
    """What modules.json lists. Raises CheckpointError."""
    try:
        found: Any = json.loads((root / MODULES).read_text(encoding="utf-8"))
        usable = (
            isinstance(found, list)
            and len(found) > 0
            and all(isinstance(each, dict) and isinstance(each.get("path"), str) for each in found)
        )
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place!r}: {MODULES} does not list the modules of a model") from error
    if not usable:
        raise CheckpointError(f"{place!r}: {MODULES} does not list the modules of a model")
    if not is_own({**found[0], "type": f"{PACKAGE}."}):
        raise CheckpointError(f"{place!r}: {MODULES} names a folder {found[0]['path'][:80]!r}; only its own are opened")
    return found


def _fetched(place: str) -> Path | None:
    """A folder with these files of a model on the hub; None where it has none, or they cannot be had."""
    try:
        with quiet_transformers():
            hf_hub_download(place, MODULES, etag_timeout=_HUB_SECONDS)
            return Path(snapshot_download(place, allow_patterns=list(ON_THE_HUB), etag_timeout=_HUB_SECONDS))
    except Exception:  # whatever a network can do, and a name that is none: whoever opens the model says so
        return None
