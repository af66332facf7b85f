"""Rows from local files, or from the hub with the datasets library.

A local source is a folder with one file per split, ``<split>.<jsonl|json|csv|tsv|parquet|txt>``, gzipped or not,
either directly inside it or inside ``<folder>/<task>/``. Images and sounds may also lie in ``<split>/<class>/``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from faster_pruner.data.files import READERS, Row, Rows, class_names, passages, read_rows
from faster_pruner.data.media import rows_of_folder
from faster_pruner.errors import DataError

# Splits that calibration may draw from; of a single file one row in so many is held back for the others.
TRAIN_SPLITS = ("train", "training")
_HELD_BACK, _MOST_HELD_BACK = 10, 3000
# How the name of a plain text file ends.
_PLAIN = ".txt"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's rows come from.

    Attributes:
        folder: a local folder, or None.
        subfolder: looked into first, below `folder`.
        hub: data set id on the hub, used when there is no folder.
        hub_config: its configuration.
        shared: whether, where the hub has training rows alone, a part of them is held back for the other splits.
        file: a single file in place of the folder.
        together: column; where a part of all rows is held back, those with the same value are held back together. Empty
            for any rows.
        documents: most documents of a retrieval folder that queries are evaluated against.
        unlabelled: a file of rows to distil on, in place of training rows.
        judged: most rows of a split that are evaluated, 0 for none; None for all.
        running: whether a plain text file is one running text, not a text per line.
    """

    folder: Path | None = None
    subfolder: str = ""
    hub: str = ""
    hub_config: str | None = None
    shared: bool = False
    file: Path | None = None
    together: str = ""
    documents: int = 100_000
    unlabelled: Path | None = None
    judged: int | None = None
    running: bool = False

    @property
    def description(self) -> str:
        """Where the rows come from, in words."""
        if self.file is not None:
            return self.file.name
        if self.folder is not None:
            return self.folder.name if not self.subfolder else f"{self.folder.name}/{self.subfolder}"
        return self.hub if self.hub_config is None else f"{self.hub} ({self.hub_config})"


@contextmanager
def without_bars() -> Generator[None]:
    """No progress bars of the datasets library."""
    from datasets.utils import logging as log

    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()


@contextmanager
def _quiet() -> Generator[None]:
    """Neither progress bars nor log lines of the datasets library: what goes wrong is told by ours."""
    from datasets.utils import logging as log

    level = log.get_verbosity()
    log.set_verbosity(logging.CRITICAL)
    try:
        with without_bars():
            yield
    finally:
        log.set_verbosity(level)


def load_split(source: Source, names: Sequence[str]) -> Rows:
    """The rows of the first split of `source` that exists under one of `names`.

    Raises:
        DataError: no such folder, file or split, or a file that cannot be read.
    """
    held_back = names[0] not in TRAIN_SPLITS
    if source.file is not None:
        split = "held back" if held_back else "train"
        rows = rows_of_file(source.file, split=split, running=source.running)
        rows = _part_of(rows, held_back=held_back, together=source.together)
    elif source.folder is not None:
        rows = _local(source, names)
    elif source.shared and _trains_only(source):
        rows = _from_hub(source, TRAIN_SPLITS, called="held back" if held_back else "train")
        rows = _part_of(rows, held_back=held_back, together=source.together)
    else:
        rows = _from_hub(source, names)
    if not rows:
        raise DataError(f"split {names[0]!r} of {source.description} is empty")
    return rows


def _part_of(rows: Rows, *, held_back: bool, together: str = "") -> Rows:
    """The rows that are held back to judge by, or the others; the same ones every time."""
    count = min(_MOST_HELD_BACK, max(1, len(rows) // _HELD_BACK))
    mixed = sample(rows, len(rows), seed=0)
    if together:
        mixed, count = _grouped(mixed, together, count)
    return mixed[:count] if held_back else mixed[count:]


def some_of(rows: Rows, most: int, *, together: str = "") -> Rows:
    """At least `most` of the rows, the same ones every time, those with the same value of a column all or none."""
    if most >= len(rows):
        return rows
    mixed = sample(rows, len(rows), seed=0)
    if together:
        mixed, most = _grouped(mixed, together, most)
    return mixed[:most]


def _grouped(rows: Rows, column: str, count: int) -> tuple[Rows, int]:
    """The rows with those of one value side by side, and the first number of at least `count` that tears none apart.

    Where all rows have one value, they stay as they are.
    """
    numbers: dict[str, int] = {}
    # a value may be anything, until somebody reads it as what it should be
    own = [numbers.setdefault(repr(row.get(column)), len(numbers)) for row in rows]
    if len(numbers) < 2:
        return rows, count
    sizes = Counter(own)
    # the last one is never held back
    ends = list(accumulate(sizes[number] for number in range(len(numbers) - 1)))
    order = sorted(range(len(rows)), key=own.__getitem__)
    return rows.chosen(order), next((end for end in ends if end >= count), ends[-1])


def rows_of_file(file: Path, *, split: str, running: bool = False) -> Rows:
    """All rows of a single file; of a plain text file that is one `running` text its passages. Raises DataError."""
    if not file.is_file():
        raise DataError(f"there is no file {str(file)!r} of rows")
    suffix = next((s for s in READERS if file.name.endswith((s, s + ".gz"))), None)
    if suffix is None:
        raise DataError(f"{str(file)!r} is no file of rows: expected {', '.join(READERS)} (.gz too)")
    return passages(file, split=split) if running and suffix == _PLAIN else read_rows(file, suffix, split=split)


def _local(source: Source, names: Sequence[str]) -> Rows:
    """Rows from a local folder."""
    assert source.folder is not None
    if not source.folder.is_dir():
        raise DataError(f"data folder {str(source.folder)!r} does not exist")
    places = [source.folder / source.subfolder, source.folder] if source.subfolder else [source.folder]
    for name in names:
        for place in places:
            for suffix in READERS:
                for file in (place / f"{name}{suffix}", place / f"{name}{suffix}.gz"):
                    if file.is_dir():
                        raise DataError(f"{str(file)!r} is a folder; a file of rows is needed")
                    if file.is_file():
                        return rows_of_file(file, split=name, running=source.running)
            found = rows_of_folder(place / name) if (place / name).is_dir() else []
            if found:
                return Rows(found, place=name, split=name)
    wanted = f"{names[0]}.jsonl, .csv or .parquet (.gz too), or {names[0]}/<class>/ with images or sounds"
    raise DataError(f"{str(places[0])!r} has no file for the split {names[0]!r}: expected {wanted}")


def _from_hub(source: Source, names: Sequence[str], *, called: str = "") -> Rows:
    """Rows from the hub, under the name of their split or another one."""
    import datasets

    for name in names:
        try:
            with _quiet():
                loaded: Any = datasets.load_dataset(source.hub, source.hub_config, split=name)
            place = f"{source.description}, {name}"
            named = class_names(loaded.features.to_dict())
            return Rows(_undecoded(loaded), place=place, split=called or name, class_names=named)
        except ValueError as error:
            if "split" not in str(error).lower():
                raise DataError(f"data set {source.description} cannot be read: {_first_line(error)}") from error
        except Exception as error:  # connection errors come in many kinds
            raise _unreachable(source, error) from error
    raise DataError(f"data set {source.description} has no split {names[0]!r}")


def _trains_only(source: Source) -> bool:
    """Whether the hub has no other rows than those to train on. Raises DataError."""
    import datasets

    try:
        with _quiet():
            return set(datasets.get_dataset_split_names(source.hub, source.hub_config)) <= set(TRAIN_SPLITS)
    except Exception as error:  # connection errors come in many kinds
        raise _unreachable(source, error) from error


def _unreachable(source: Source, error: Exception) -> DataError:
    """What is wrong with the hub, or with the name."""
    return DataError(
        f"data set {source.description} cannot be loaded from the hub ({_first_line(error)}); give a local folder of "
        "rows",
        option="data",
    )


def _undecoded(loaded: Any) -> Sequence[Row]:
    """Rows of a loaded data set; images and sounds as files that nobody has opened, and one after the other."""
    import datasets

    media = [name for name, kind in loaded.features.items() if isinstance(kind, datasets.Image | datasets.Audio)]
    for name in media:
        loaded = loaded.cast_column(name, type(loaded.features[name])(decode=False))
    return loaded if media else list(loaded)


def _first_line(error: BaseException) -> str:
    """First line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def sample(rows: Rows, count: int, seed: int) -> Rows:
    """`count` rows drawn without replacement, seeded; all of them, shuffled, when there are no more than `count`."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    return rows.chosen(order[:count])
