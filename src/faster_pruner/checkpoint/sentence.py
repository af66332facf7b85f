"""Folders of sentence-transformers: what they do with the hidden states of their transformer.

`modules.json` lists modules; the first is the transformer, whose files lie in the folder itself, the others (pooling, a
Dense layer, normalisation) have numbered folders. They are opened by sentence-transformers' own code, and never by
code that a folder names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.checkpoint.screening import first_lines, read_json
from faster_pruner.errors import CheckpointError, OptionError
from faster_pruner.model.head import Head

MODULES = "modules.json"
POOLINGS = ("mean", "cls", "max", "lasttoken")
SETTINGS, LIMITS = "config_sentence_transformers.json", "sentence_bert_config.json"
_PACKAGE = "sentence_transformers"
_DOT = ("dot", "dot_product", "dot_score")


def is_sentence_transformer(place: str) -> bool:
    """Whether a local folder is one of sentence-transformers that makes embeddings."""
    file = Path(place) / MODULES
    return file.is_file() and any(str(each.get("type", "")).endswith("Pooling") for each in _modules(place))


def read_head(place: str, *, dims: Sequence[int] = ()) -> Head:
    """What a folder of sentence-transformers does with hidden states.

    Args:
        place: local folder.
        dims: lengths of prefixes that are embeddings, too (Matryoshka).

    Raises:
        CheckpointError: modules that are not sentence-transformers' own, or cannot be opened.
        OptionError: sentence-transformers is not installed, or a prefix is as long as the vector.
    """
    modules = _modules(place)
    if modules[0].get("path"):
        raise CheckpointError(
            f"{place!r} keeps its transformer in a folder {modules[0]['path']!r} of its own; open it with "
            "sentence-transformers 3 or newer and save it again: that puts the transformer into the folder itself"
        )
    opened = tuple(_opened(place, each) for each in modules[1:])
    settings = _settings(Path(place) / SETTINGS)
    limits = _settings(Path(place) / LIMITS)
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    longest = limits.get("max_seq_length")
    return Head(
        modules=opened,
        similarity="dot" if str(settings.get("similarity_fn_name") or "cosine") in _DOT else "cosine",
        longest=longest if type(longest) is int and longest > 0 else None,
        prompt=str(prompts.get(default) or "") if default else "",
        dims=tuple(dims),
    )


def head_of(model: Any, pooling: str, *, dims: Sequence[int] = ()) -> Head:
    """A head for an encoder that comes without one. Raises OptionError."""
    if pooling not in POOLINGS:
        raise OptionError(f"pooling is {pooling!r}; known are {', '.join(POOLINGS)}", option="pooling")
    own = _known_modules()
    width = int(model.config.get_text_config().hidden_size)
    return Head(modules=(own.Pooling(width, pooling), own.Normalize()), dims=tuple(dims))


def write_head(folder: Path, head: Head) -> None:
    """Make a folder with a transformer one of sentence-transformers, with the modules of a head; if it is none yet.

    Args:
        folder: holds model and tokenizer.
        head: of sentence-transformers' modules.
    """
    if (folder / MODULES).exists():
        return
    listed = [_entry(0, "", _known_modules().Transformer)]
    for place, module in enumerate(head.modules, start=1):
        name = f"{place}_{type(module).__name__}"
        (folder / name).mkdir()
        saved: Any = module
        saved.save(str(folder / name))
        listed.append(_entry(place, name, type(module)))
    (folder / MODULES).write_text(json.dumps(listed, indent=2) + "\n")
    (folder / LIMITS).write_text(json.dumps({"max_seq_length": head.longest, "do_lower_case": False}, indent=2) + "\n")


def _entry(place: int, path: str, kind: type) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": path, "type": f"{kind.__module__}.{kind.__qualname__}"}


def _modules(place: str) -> list[Mapping[str, Any]]:
    """What modules.json lists. Raises CheckpointError."""
    try:
        found: Any = json.loads((Path(place) / MODULES).read_text(encoding="utf-8"))
        assert isinstance(found, list)
        assert found
        assert all(isinstance(each, dict) and isinstance(each.get("path"), str) for each in found)
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise CheckpointError(f"{place!r}: {MODULES} does not list the modules of a model") from error
    return found


def _opened(place: str, entry: Mapping[str, Any]) -> nn.Module:
    """One module, by sentence-transformers' own class."""
    kind, path = str(entry.get("type", "")), str(entry["path"])
    if not kind.startswith(f"{_PACKAGE}.") or Path(path).name != path:
        raise CheckpointError(f"{place!r}: {MODULES} names {kind[:80]!r} in {path[:80]!r}; only its own are opened")
    made = getattr(_known_modules(), kind.rpartition(".")[2], None)
    if made is None:
        raise CheckpointError(f"{place!r}: sentence-transformers has no module {kind[:80]!r}")
    if (Path(place) / path / "pytorch_model.bin").exists():
        raise CheckpointError(
            f"{place!r}: the weights of {path} are pytorch_model.bin, which is never unpickled; where you trust it, "
            "open it with sentence-transformers and save it again: that writes safetensors"
        )
    try:
        with quiet_transformers():
            module: nn.Module = made.load(place, subfolder=path, local_files_only=True)
    except Exception as error:  # whatever its code makes of strangers' settings
        raise CheckpointError(f"{place!r}: module {path} cannot be opened: {first_lines(error)}") from error
    return module.eval()


def _settings(file: Path) -> dict[str, Any]:
    """The content of a settings file; nothing where there is none. Raises CheckpointError."""
    return read_json(file) if file.is_file() else {}


def _known_modules() -> Any:
    """sentence-transformers' own modules. Raises OptionError where it is not installed."""
    if find_spec(_PACKAGE) is None:
        raise OptionError(
            "embeddings need sentence-transformers, which is not installed; install faster-pruner[embedding]"
        )
    return import_module(f"{_PACKAGE}.sentence_transformer.modules")
