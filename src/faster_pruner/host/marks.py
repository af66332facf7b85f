"""What we wrote, and how we know it again: only that is ever replaced.

A pruned folder holds `result.json`, which lists everything in it. An ONNX file carries a mark in its metadata, and an
OpenVINO file one in its `rt_info`; their companions (`.data`, `.bin`) are known by them. A report carries one in
its head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

RESULT_FILE = "result.json"
# The page for readers beside it.
# Per sublayer a string with a digit for each unit of the dense model: 1 kept, 0 removed.
MASKS_FILE = "masks.json"
PAGE_FILE = "report.html"
# What a folder of kept statistics has.
KEPT_FILE = "statistics.json"
# Key in result.json: names of everything in the folder.
FILES = "files"
# Key of our metadata in config.json, in ONNX files and in OpenVINO's.
MARK = "faster_pruner"
_CONFIG = "config.json"
# What 0.1.0 wrote, which kept no list.
_WITHOUT_A_LIST = re.compile(
    r"result\.json|masks\.json|README\.md|modeling_faster_pruner\.py|config\.json|generation_config\.json|"
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json|"
    r"special_tokens_map\.json|added_tokens\.json|chat_template\.jinja|vocab\.(txt|json)|merges\.txt|"
    r"spiece\.model|tokenizer\.model|sentencepiece\.bpe\.model"
)
# The field of an ONNX ModelProto that holds its metadata, and of an entry's key.
_METADATA, _KEY = 14, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Where OpenVINO puts `rt_info`: at the end of the file.
_END_OF_XML = 65_536
# Where a page has its mark: at the beginning of the file.
_HEAD_OF_PAGE = 256


def names_in(folder: Path) -> list[str]:
    """Everything in a folder, at any depth."""
    return sorted(place.relative_to(folder).as_posix() for place in folder.rglob("*"))


def strangers(folder: Path) -> list[str]:
    """What is in a folder that we did not write; of a folder that we did not write, that is everything."""
    listed = _listed(folder)
    if listed is None:
        known = _is_marked(folder / _CONFIG) and (folder / RESULT_FILE).is_file()
        listed = {name for name in names_in(folder) if known and _WITHOUT_A_LIST.fullmatch(name)}
    # what is in folders is named itself
    others = [name for name in names_in(folder) if name not in listed and not is_our_file(folder / name)]
    return [name for name in others if not (folder / name).is_dir() or not any((folder / name).iterdir())]


def _listed(folder: Path) -> set[str] | None:
    """The names that result.json lists; None where it lists none."""
    names = _read(folder / RESULT_FILE).get(FILES)
    return {str(name) for name in names} if isinstance(names, list) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _is_marked(config: Path) -> bool:
    """Whether a config carries our sizes."""
    return isinstance(_read(config).get(MARK), dict)


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def is_our_file(file: Path) -> bool:
    """Whether a file is an export or a report of ours."""
    owner = {".data": file.with_suffix(""), ".bin": file.with_suffix(".xml")}.get(file.suffix, file)
    try:
        if owner.suffix == ".onnx":
            with owner.open("rb") as stream:
                return MARK in _metadata_keys(stream)
        if owner.suffix == ".html":
            with owner.open("rb") as stream:
                return f'<meta name="{MARK}" '.encode() in stream.read(_HEAD_OF_PAGE)
        if owner.suffix == ".xml":
            with owner.open("rb") as stream:
                stream.seek(max(0, owner.stat().st_size - _END_OF_XML))
                return f"<{MARK} ".encode() in stream.read()
    except (OSError, ValueError):
        return False
    return False


def _metadata_keys(stream: BinaryIO) -> Iterator[str]:
    """Keys of an ONNX file's metadata, without reading its weights. Raises ValueError when it is no such file."""
    stream.seek(0, 2)
    end = stream.tell()
    stream.seek(0)
    while stream.tell() < end:
        number, content = _field(stream, {_METADATA})
        if number == _METADATA:
            yield _entry_key(content)


def _entry_key(entry: bytes) -> str:
    """The key of one entry; empty where it has none."""
    if len(entry) < 2 or entry[0] != _KEY << 3 | _BYTES:
        return ""
    return entry[2 : 2 + entry[1]].decode(errors="replace")


def _field(stream: BinaryIO, wanted: set[int]) -> tuple[int, bytes]:
    """The next field of a protobuf message: its number, and its bytes where it is wanted. Raises ValueError."""
    tag = _varint(stream)
    number, kind = tag >> 3, tag & 7
    if kind == _VARINT:
        _varint(stream)
        return number, b""
    if kind == _BYTES:
        size = _varint(stream)
    elif kind in (_FIXED32, _FIXED64):
        size = 4 if kind == _FIXED32 else 8
    else:
        raise ValueError(f"protobuf has no kind {kind}")
    if number in wanted:
        return number, stream.read(size)
    stream.seek(size, 1)
    return number, b""


def _varint(stream: BinaryIO) -> int:
    """A protobuf integer. Raises ValueError at the end of the file."""
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError("the file ends in the middle of a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number that is too long")
