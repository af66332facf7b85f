"""The files of a checkpoint beside its model that pruning does not change: they are kept as they are, byte for byte.

The files of a tokenizer or an image processor are what its users trust; transformers would write others, with the same
meaning at best. What others read beside the weights (a chat template, generation settings, the pooling of
sentence-transformers) transformers may not know at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download

from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.checkpoint.sentence import LIMITS, MODULES, SETTINGS

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
# Of sentence-transformers, which puts the settings of a module into a numbered folder.
_SENTENCES = (MODULES, LIMITS, SETTINGS, "[0-9]*_*/*.json")
_NUMBERED = re.compile(r"\d+_\w+")
# Its modules that need no weights beside the model's.
_WITHOUT_WEIGHTS = {"Transformer", "Pooling", "Normalize", "Dropout"}
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
    """Those of a local folder or hub id; none where they cannot be had: a checkpoint is complete without them."""
    try:
        folder = Path(place) if Path(place).is_dir() else _downloaded(place)
        found = {name: _taken(folder, name) for name in _names_in(folder)}
    except Exception:  # whatever a network or a disk can do: transformers writes the processor's files instead
        return NONE
    taken = {name: content for name, content in found.items() if content is not None}
    processor = set(taken) - {_GENERATION, *_SENTENCES}
    return Companions(_without_half_modules(taken), whole=bool(processor) and len(taken) == len(found))


def _downloaded(place: str) -> Path:
    """A folder with the companions of a model on the hub."""
    with quiet_transformers():
        return Path(snapshot_download(place, allow_patterns=[*_PROCESSOR, _GENERATION, *_SENTENCES]))


def _names_in(folder: Path) -> Iterator[str]:
    """Names of companions in a folder, and in its numbered folders."""
    places = [folder, *(inner for inner in sorted(folder.iterdir()) if _NUMBERED.fullmatch(inner.name))]
    for place in places:
        patterns: Iterable[str] = ("*.json",) if place != folder else (*_PROCESSOR, _GENERATION, *_SENTENCES[:-1])
        for pattern in patterns if place.is_dir() else ():
            for file in sorted(place.glob(pattern)):
                if not file.name.startswith("."):
                    yield file.relative_to(folder).as_posix()


def _taken(folder: Path, name: str) -> bytes | None:
    """The content of a companion; None for what leads out of the folder, is too large, or is no file."""
    file, root = folder / name, folder.resolve()
    if root.parent.name == "snapshots":
        # a folder of the hub's cache, whose files are links into a folder beside it
        root = root.parent.parent
    if not file.is_file() or not file.resolve().is_relative_to(root) or file.stat().st_size > _LARGEST:
        return None
    content = file.read_bytes()
    return _without_code(content) if name.endswith("_config.json") else content


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


def _without_half_modules(files: dict[str, bytes]) -> dict[str, bytes]:
    """All files; without those of sentence-transformers where it would miss a module's weights."""
    try:
        modules: Any = json.loads(files.get(MODULES, b"[]"))
        complete = all(
            str(module["type"]).rpartition(".")[2] in _WITHOUT_WEIGHTS
            and (module["path"] == "" or not str(module["type"]).endswith("Transformer"))
            for module in modules
        )
    except (ValueError, RecursionError, LookupError, TypeError):
        complete = False
    if complete and MODULES in files:
        return files
    dropped = set(_SENTENCES) - {SETTINGS}
    return {name: content for name, content in files.items() if name not in dropped and "/" not in name}
