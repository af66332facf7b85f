"""Rows of one local file, read strictly: what is no row is refused where it stands, and nothing is guessed.

Texts stay texts: an empty field or one that reads `null` or `NA` is what it says. JSON and CSV must be UTF-8 (with or
without a byte order mark), with any line ends.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, overload

from faster_pruner.checks import shown
from faster_pruner.errors import DataError

Row = dict[str, Any]
# Letters of a passage of running text, and how many passages there are at least of a short one.
_SHORT_PASSAGE, _LONG_PASSAGE, _FEWEST_PASSAGES = 200, 4000, 200


class Rows(Sequence[Row]):
    """Rows, and where each stands in its file or split.

    Attributes:
        numbers: of the rows where they come from, counted from 1 without a header.
        place: that file or split, in words.
        split: the name that it was found under.
        folder: that names of files in the rows are relative to; None for the working folder.
        class_names: by column, names in the order of its class indices, where the data say so themselves.
        running: whether each goes on where the one with the number before ended (`passages`).
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        numbers: Sequence[int] | None = None,
        place: str = "",
        split: str = "",
        folder: Path | None = None,
        class_names: Mapping[str, tuple[str, ...]] | None = None,
        running: bool = False,
    ) -> None:
        self._rows, self.place, self.split, self.folder, self.running = rows, place, split, folder, running
        self.class_names = class_names or {}
        self.numbers = range(1, len(rows) + 1) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Row | Rows:
        return self._rows[place] if isinstance(place, int) else self.chosen(range(len(self))[place])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(cast("Sequence[object]", other)) if isinstance(other, Rows | list) else NotImplemented

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def chosen(self, order: Iterable[int]) -> Rows:
        """Some of the rows, which keep their numbers."""
        order = list(order)
        numbers, rows = [self.numbers[i] for i in order], [self._rows[i] for i in order]
        said: dict[str, Any] = {"folder": self.folder, "class_names": self.class_names, "running": self.running}
        return Rows(rows, numbers=numbers, place=self.place, split=self.split, **said)

    def where(self, i: int) -> str:
        """Where the i-th of these rows stands, in words."""
        return f"{self.place}{', ' if self.place else ''}row {self.numbers[i]} (counted from 1)"


def read_rows(file: Path, suffix: str, *, split: str) -> Rows:
    """The rows of a file.

    Args:
        file: its name ends in `suffix`, or in `.gz` after that.
        suffix: a key of `READERS`.
        split: name of the split that it holds.

    Raises:
        DataError: it cannot be read, or does not hold rows.
    """
    with _told(file):
        found = READERS[suffix](file)
    names = found.class_names if isinstance(found, _Table) else None
    return Rows(found, place=file.name, split=split, folder=file.parent, class_names=names)


def passages(file: Path, *, split: str) -> Rows:
    """The running text of a file in passages, which end with a line wherever they can, in a column of the usual name.

    Args:
        file: plain text, gzipped or not.
        split: name of the split that it holds.

    Raises:
        DataError: it cannot be read.
    """
    with _told(file), _opened(file) as stream:
        text = stream.read().replace("\r\n", "\n")
    # of a short text there are many, too: some of them are held back
    most = max(_SHORT_PASSAGE, min(_LONG_PASSAGE, len(text) // _FEWEST_PASSAGES))
    ends = (r"\n", r"(?:\s|\Z)", "")
    found = re.findall("|".join(f".{{1,{most}}}{end}" for end in ends), text, flags=re.DOTALL)
    return Rows([{"text": each} for each in found], place=file.name, split=split, running=True)


def numbered_objects(file: Path) -> Generator[tuple[int, Row]]:
    """The objects of a file of JSON lines, each with its line, one after the other: files may be larger than memory.

    Raises:
        DataError: it cannot be read, or a line holds no object.
    """
    with _told(file), _opened(file) as stream:
        yield from _numbered(file, stream)


@contextmanager
def _told(file: Path) -> Generator[None]:
    """What goes wrong with a file inside becomes a DataError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file.name!r} is not a whole gzip file: {_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name!r} is not UTF-8 text (at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _opened(file: Path) -> Generator[Any]:
    """The text of a file, unpacked where its name says so."""
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as stream:
        yield stream


def _text_lines(file: Path) -> list[Row]:
    """One text per line, in a column of the usual name; blank lines are none."""
    with _opened(file) as stream:
        return [{"text": line.rstrip("\r\n")} for line in stream if line.strip()]


def _json_lines(file: Path) -> list[Row]:
    """One object per line; empty lines are none."""
    with _opened(file) as stream:
        return [row for _, row in _numbered(file, stream)]


def _numbered(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    """The object of every line that is not empty, and the line's number."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{file.name}, line {number}"
            yield number, _object(_parsed(line, where), where)


def _json(file: Path) -> list[Row]:
    """A list of objects, or one object per line."""
    with _opened(file) as stream:
        text: str = stream.read()
    if not text.lstrip().startswith("["):
        return [row for _, row in _numbered(file, text.split("\n"))]
    found: list[Any] = _parsed(text, file.name)
    return [_object(each, f"{file.name}, row {number}") for number, each in enumerate(found, start=1)]


def _parsed(text: str, where: str) -> Any:
    """A JSON value. Raises DataError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be read as json: {_reason(error)}") from error


def _object(value: Any, where: str) -> Row:
    """A row. Raises DataError."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is {shown(value)}; a row is an object with a value per column")
    return cast(Row, value)


def _csv(file: Path) -> list[Row]:
    return _separated(file, ",")


def _tsv(file: Path) -> list[Row]:
    return _separated(file, "\t")


def _separated(file: Path, separator: str) -> list[Row]:
    """Rows of texts, below a line of column names."""
    rows: list[Row] = []
    before = csv.field_size_limit(sys.maxsize)
    try:
        with _opened(file) as stream:
            reader = csv.reader(stream, delimiter=separator, strict=True)
            try:
                header = next(reader, [])
                _check_header(file, header)
                for fields in reader:
                    if len(fields) == len(header):
                        rows.append(dict(zip(header, fields, strict=True)))
                    elif fields:
                        raise DataError(
                            f"{file.name}: row {len(rows) + 1} (counted from 1) ends in line {reader.line_num} with "
                            f"{len(fields)} fields where the header names {len(header)} columns; put fields that hold "
                            "the separator into quotes"
                        )
            except csv.Error as error:
                raise DataError(
                    f"{file.name} cannot be read as csv: line {reader.line_num}: {_reason(error)}"
                ) from error
    finally:
        csv.field_size_limit(before)
    return rows


def _check_header(file: Path, header: list[str]) -> None:
    """Raise DataError when two columns have one name."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{file.name}: the header names {', '.join(map(repr, twice))} more than once")


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names of the classes by column of class indices, from a description in the datasets library's form."""
    found: dict[str, tuple[str, ...]] = {}
    for column, feature in features.items():
        inner: Any = feature
        while isinstance(inner, dict) and isinstance(inner.get("feature"), dict):
            inner = cast("dict[str, Any]", inner)["feature"]
        names: Any = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
        if isinstance(names, list):
            found[column] = tuple(map(str, cast("list[Any]", names)))
    return found


class _Table(Sequence[Row]):
    """Rows of an Arrow table; those that hold whole files become objects of their own when they are asked for."""

    def __init__(self, table: Any) -> None:
        import pyarrow

        types = pyarrow.types
        inner = [
            each
            for kind in table.schema.types
            for each in ([field.type for field in kind] if types.is_struct(kind) else [kind])
        ]
        large = any(types.is_binary(each) or types.is_large_binary(each) for each in inner)
        self._table, self._rows = table, None if large else table.to_pylist()
        try:
            said: Any = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            self.class_names = class_names(said["info"]["features"])
        except (ValueError, LookupError, TypeError, AttributeError):
            self.class_names = dict[str, tuple[str, ...]]()

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if self._rows is not None:
            return self._rows[place]
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        return self._table.slice(range(len(self))[place], 1).to_pylist()[0]


def _parquet(file: Path) -> Sequence[Row]:
    import pyarrow
    from pyarrow import parquet

    if file.suffix == ".gz":
        raise DataError(f"{file.name!r}: parquet files are not gzipped; unpack it")
    try:
        return _Table(parquet.ParquetFile(file).read())
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{file.name!r} cannot be read as parquet: {_reason(error)}") from error


# By the end of a file's name, in the order in which they are looked for.
READERS: dict[str, Callable[[Path], Sequence[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _text_lines,
}
