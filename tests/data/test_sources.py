"""Rows from files."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from faster_pruner.data.files import Rows
from faster_pruner.data.sources import Source, load_split, sample, some_of
from faster_pruner.data.tasks import Data, Task
from faster_pruner.errors import DataError, OptionError

ROWS = [{"text": "w1 w2 w3", "label": i % 2} for i in range(6)]


def write(file: Path, suffix: str) -> None:
    if suffix == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(file))
        return
    if "json" in suffix:
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    else:
        gap = "\t" if "tsv" in suffix else ","
        lines = f"text{gap}label\n" + "".join(f"{row['text']}{gap}{row['label']}\n" for row in ROWS)
    file.write_bytes(gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode())


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "parquet"])
@pytest.mark.parametrize("subfolder", ["", "sst2"])
def test_local_files_of_every_kind(tmp_path: Path, suffix: str, subfolder: str) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    write(folder / f"train.{suffix}", suffix)
    # what a file of texts holds are texts
    texts = [{**row, "label": str(row["label"])} for row in ROWS]
    wanted = texts if suffix.startswith(("csv", "tsv")) else ROWS
    assert load_split(Source(folder=tmp_path, subfolder="sst2"), ("train",)) == wanted


@pytest.mark.parametrize("zipped", [False, True])
def test_a_text_file_has_a_text_per_line(tmp_path: Path, zipped: bool) -> None:
    text = '\ufeffone, two\r\n\r\n \t\n  three "four\n\u00e9 five'.encode()
    file = tmp_path / ("train.txt.gz" if zipped else "train.txt")
    file.write_bytes(gzip.compress(text) if zipped else text)
    wanted = [{"text": "one, two"}, {"text": '  three "four'}, {"text": "\u00e9 five"}]
    assert load_split(Source(folder=tmp_path), ("train",)) == wanted
    both = [load_split(Source(file=file), (split,)) for split in ("train", "validation")]
    assert sorted(row["text"] for rows in both for row in rows) == sorted(row["text"] for row in wanted)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["lines", "one line", "no spaces", "short"])
def test_a_running_text_comes_in_passages_that_make_it_up_again(tmp_path: Path, ends: str, kind: str) -> None:
    words = [f"word{i}" for i in range(60_000)]
    text = {
        "lines": ends.join(" ".join(words[i : i + 9]) + (ends if i % 4 else "") for i in range(0, len(words), 9)),
        "one line": " ".join(words),
        "no spaces": "".join(words),
        "short": f"first line{ends}{ends}second one{ends}",
    }[kind]
    file = tmp_path / "train.txt"
    file.write_bytes(text.encode())
    rows = load_split(Source(folder=tmp_path, running=True), ("train",))
    assert "".join(row["text"] for row in rows) == text.replace("\r\n", "\n")
    assert rows.running
    assert rows.chosen([3, 1] if len(rows) > 3 else [0]).running
    if kind != "short":
        assert 100 < len(rows) < 500
        assert max(len(row["text"]) for row in rows) <= 4001
    ended = [row["text"][-1] for row in rows][:-1]
    assert {"lines": set(ended) == {"\n"}, "one line": set(ended) == {" "}}.get(kind, True)
    if kind != "short":
        splits = [load_split(Source(file=file, running=True), (split,)) for split in ("validation", "train")]
        assert sorted(number for split in splits for number in split.numbers) == list(rows.numbers)


def test_the_first_name_that_is_there_wins(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", "jsonl")
    (tmp_path / "test.jsonl").write_text('{"text": "other", "label": 0}\n')
    assert load_split(Source(folder=tmp_path), ("validation", "dev", "test")) == ROWS


def test_bad_data_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_split(Source(folder=tmp_path / "none"), ("train",))
    with pytest.raises(DataError, match="no file for the split 'train'"):
        load_split(Source(folder=tmp_path), ("train",))
    (tmp_path / "train.jsonl").write_text('{"a": 1\nnot json')
    with pytest.raises(DataError, match="cannot be read as json"):
        load_split(Source(folder=tmp_path), ("train",))


@pytest.mark.parametrize(("name", "text"), [("train.jsonl", ""), ("train.csv", "text,label\n"), ("train.csv", "")])
def test_an_empty_file_is_one_clear_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="is empty|cannot be read"):
        load_split(Source(folder=tmp_path), ("train",))


def test_without_a_folder_and_without_a_network_the_hub_error_says_what_to_do() -> None:
    with pytest.raises(DataError, match="give a local folder of rows") as caught:
        load_split(Source(hub="nyu-mll/glue", hub_config="sst2"), ("train",))
    # the command line names its own option
    assert caught.value.option == "data"


def _hub_with(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[str]]) -> list[tuple[str, str | None]]:
    """A hub that has one data set; what it is asked for."""
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, configuration: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, configuration))
        if split not in splits:
            raise ValueError(f'Unknown split "{split}"')
        return datasets.Dataset.from_dict({"text": splits[split]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, configuration: list(splits))
    return asked


def test_a_data_set_of_the_hub_that_only_trains_has_a_part_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i}" for i in range(50)]
    asked = _hub_with(monkeypatch, {"train": texts})
    source = Data(hub="owner/corpus:raw").source(Task(name=""))
    train, rest = load_split(source, ("train", "training")), load_split(source, ("validation", "dev"))
    assert sorted(row["text"] for row in (*train, *rest)) == sorted(texts)
    assert (len(train), len(rest)) == (45, 5)
    assert (train.split, rest.split) == ("train", "held back")
    assert set(asked) == {("owner/corpus", "raw")}


def test_a_data_set_of_the_hub_with_splits_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _hub_with(monkeypatch, {"train": ["a", "b"], "test": ["c"]})
    source = Data(hub="owner/corpus").source(Task(name=""))
    assert [row["text"] for row in load_split(source, ("train",))] == ["a", "b"]
    assert [row["text"] for row in load_split(source, ("validation", "test"))] == ["c"]
    with pytest.raises(DataError, match="owner/corpus has no split 'validation'"):
        load_split(source, ("validation",))
    assert set(asked) == {("owner/corpus", None)}


def test_known_tasks_of_the_hub_never_hold_training_rows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub_with(monkeypatch, {"train": ["a", "b"]})
    with pytest.raises(DataError, match="has no split 'validation'"):
        load_split(Source(hub="nyu-mll/glue", hub_config="sst2"), ("validation",))


def test_rows_come_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="one of them is enough"):
        Data(hub="owner/corpus", folder=tmp_path)


def test_a_data_set_that_the_hub_does_not_give_is_one_line() -> None:
    with pytest.raises(DataError, match="data set owner/nothing cannot be loaded from the hub .*local folder"):
        load_split(Data(hub="owner/nothing").source(Task(name="")), ("train",))


def test_where_rows_come_from_in_words() -> None:
    assert Source(folder=Path("/some/where"), subfolder="sst2").description == "where/sst2"
    assert Source(folder=Path("/some/where")).description == "where"
    assert Source(hub="nyu-mll/glue", hub_config="sst2").description == "nyu-mll/glue (sst2)"
    assert Source(hub="imdb").description == "imdb"


def test_sample_is_seeded_and_without_replacement() -> None:
    rows = Rows([{"i": i} for i in range(50)])
    a = sample(rows, 20, 0)
    assert a == sample(rows, 20, 0)
    assert a != sample(rows, 20, 1)
    assert len({row["i"] for row in a}) == 20
    assert sorted(row["i"] for row in sample(rows, 500, 0)) == list(range(50))


def test_rows_that_belong_together_are_held_back_together(tmp_path: Path) -> None:
    """Of a single file about a tenth, and none of the values on both sides; without a column any rows."""
    file = tmp_path / "rows.jsonl"
    rows = [{"query": f"q{i % 20}", "text": f"t{i}"} for i in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, held = (load_split(Source(file=file, together="query"), (split,)) for split in ("train", "validation"))
    assert (len(kept), len(held)) == (90, 10)
    assert not {row["query"] for row in kept} & {row["query"] for row in held}
    assert sorted(row["text"] for part in (kept, held) for row in part) == sorted(row["text"] for row in rows)
    torn = [load_split(Source(file=file), (split,)) for split in ("train", "validation")]
    assert {row["query"] for row in torn[0]} & {row["query"] for row in torn[1]}


@pytest.mark.parametrize(("queries", "held_back"), [([0] * 40, 4), ([0] * 39 + [1], 39), ([0] + [1] * 39, 1)])
def test_something_is_always_left_to_calibrate_on(queries: list[int], held_back: int, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"query": query, "text": "t"}) + "\n" for query in queries))
    kept, held = (load_split(Source(file=file, together="query"), (split,)) for split in ("train", "validation"))
    assert len(kept) + len(held) == 40
    assert len(held) in (held_back, 40 - held_back)
    # a column that is not there tears nothing apart, and is for others to miss
    assert len(load_split(Source(file=file, together="none"), ("validation",))) == 4


def test_some_of_the_rows_are_the_same_ones_and_groups_stay_whole() -> None:
    rows = Rows([{"query": f"q{i // 3}", "n": i} for i in range(30)])
    some = some_of(rows, 8)
    assert len(some) == 8
    assert [row["n"] for row in some] == [row["n"] for row in some_of(rows, 8)]
    assert {row["n"] for row in some} != set(range(8))
    assert some_of(rows, 30) is rows
    assert some_of(rows, 99) is rows
    groups = Counter(row["query"] for row in some_of(rows, 8, together="query"))
    assert set(groups.values()) == {3}
    assert len(groups) == 3
