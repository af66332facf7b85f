"""The files of a checkpoint beside its model that pruning does not change: they are kept as they are, byte for byte.

The files of a tokenizer or an image processor are what its users trust; transformers would write others, with the same
meaning at best. What others read beside the weights (a chat template, generation settings, the pooling of
sentence-transformers) transformers may not know at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download

from faster_pruner.checkpoint.layout import (
    ANY_LIMITS,
    MODULE_FILES,
    MODULES,
    ON_THE_HUB,
    SETTINGS,
    Layout,
    is_own,
    kind_of,
    read_layout,
)
from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.errors import CheckpointError

# A larger file is no companion.
_LARGEST = 100 << 20
# Of processors, as they are called in the folder itself.
_PROCESSOR = (
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("chat_template.jinja", "chat_template.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "vocab.bpe", "merges.txt"),
    *("*.model", "spiece.*", "*.spm", "*.tiktoken", "bpe.codes", "tekken.json", "entity_vocab.json"),
    *("vocab-src.json", "vocab-tgt.json", "normalizer.json", "emoji.json"),
)
_GENERATION = "generation_config.json"
# Modules of sentence-transformers that need no weights beside the model's, and the file of those that do.
_WITHOUT_WEIGHTS = {"Transformer", "Pooling", "Normalize", "Dropout"}
_WEIGHTS = "model.safetensors"
# Key of a processor's settings that names code in the folder.
_CODE = "auto_map"


@dataclass(frozen=True)
class Companions:
    """Companion files of a checkpoint.

    Attributes:
        files: content by path inside the folder.
        whole: everything that the checkpoint's processor was opened from is among them.
    """

    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    whole: bool = False

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(map(len, self.files.values()))

    def write(self, folder: Path) -> None:
        """Put them into a folder, over what is there. Raises OSError."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)


NONE = Companions()


def read_companions(place: str) -> Companions:
    """Those of a local folder or hub id; none where they cannot be had: a checkpoint is complete without them.

    Of a folder of sentence-transformers that keeps its transformer in a folder of its own, they are those of one that
    keeps it in the folder itself, as all newer ones do.
    """
    try:
        folder = Path(place) if Path(place).is_dir() else _downloaded(place)
        layout = _layout(folder)
        named = list(_named(folder, layout))
        found = {name: _taken(folder, file) for name, file in named}
    except Exception:  # whatever a network or a disk can do: transformers writes the processor's files instead
        return NONE
    taken = {name: content for name, content in found.items() if content is not None}
    if layout is not None and not _is_complete(layout, taken):
        taken = {name: content for name, content in taken.items() if not _is_of_modules(name)}
    elif layout is not None and layout.inner:
        modules = [{**layout.modules[0], "path": ""}, *layout.modules[1:]]
        taken[MODULES] = (json.dumps(modules, indent=2) + "\n").encode()
    processor = any(name != _GENERATION and name != SETTINGS and not _is_of_modules(name) for name in taken)
    return Companions(taken, whole=processor and all(content is not None for content in found.values()))


def _downloaded(place: str) -> Path:
    """A folder with the companions of a model on the hub."""
    with quiet_transformers():
        return Path(snapshot_download(place, allow_patterns=[*_PROCESSOR, _GENERATION, *ON_THE_HUB]))


def _layout(folder: Path) -> Layout | None:
    """How sentence-transformers has laid out a folder; None for one that it cannot open either."""
    try:
        return read_layout(str(folder))
    except CheckpointError:
        return None


def _named(folder: Path, layout: Layout | None) -> Iterator[tuple[str, Path]]:
    """The companions in a folder: what each is called in a new one, and the file."""
    transformer = folder if layout is None else layout.transformer
    for file in _files(transformer, (*_PROCESSOR, _GENERATION, *([] if layout is None else [ANY_LIMITS]))):
        yield file.name, file
    for file in _files(folder, (SETTINGS, *([] if layout is None else [MODULES]))):
        yield file.name, file
    for module in [] if layout is None else layout.modules[1:]:
        if is_own(module) and module["path"]:
            for file in _files(folder / str(module["path"]), MODULE_FILES):
                yield f"{module['path']}/{file.name}", file


def _files(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    """Files of a folder, none that is hidden."""
    for pattern in patterns:
        for file in sorted(folder.glob(pattern)):
            if not file.name.startswith("."):
                yield file


def _is_of_modules(name: str) -> bool:
    """Whether a companion is of no use without all modules of sentence-transformers."""
    return "/" in name or name == MODULES or fnmatch(name, ANY_LIMITS)


def _taken(folder: Path, file: Path) -> bytes | None:
    """The content of a companion; None for what leads out of the folder, is too large, or is no file."""
    root = folder.resolve()
    if root.parent.name == "snapshots":
        # a folder of the hub's cache, whose files are links into a folder beside it
        root = root.parent.parent
    if not file.is_file() or not file.resolve().is_relative_to(root) or file.stat().st_size > _LARGEST:
        return None
    content = file.read_bytes()
    return _without_code(content) if file.name.endswith("_config.json") else content


def _without_code(content: bytes) -> bytes:
    """Settings without the name of code that the new folder does not have."""
    try:
        settings: Any = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(settings, dict) or _CODE not in settings:
        return content
    kept = {key: value for key, value in cast("dict[str, Any]", settings).items() if key != _CODE}
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def _is_complete(layout: Layout, files: Mapping[str, bytes]) -> bool:
    """Whether sentence-transformers can open its modules from these files, without code that a folder brings."""
    return all(
        is_own(module) and (kind_of(module) in _WITHOUT_WEIGHTS or f"{module['path']}/{_WEIGHTS}" in files)
        for module in layout.modules
    )
