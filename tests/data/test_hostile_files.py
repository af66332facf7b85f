"""Files of rows that are not what their names say: refused in one line that says where, or read as they are."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from badness import bad_input
from faster_pruner.data.sources import Source, load_split, sample
from faster_pruner.errors import DataError

GOOD = b'{"text": "w1", "label": 0}\n'
HEADER = b"text,label\n"


def as_folder(file: Path) -> None:
    file.mkdir()


BAD: list[tuple[str, bytes | Callable[[Path], None], str]] = [
    ("train.jsonl", b"", "is empty"),
    ("train.jsonl", b"\n\n \n", "is empty"),
    ("train.jsonl", b"not json", r"train.jsonl, line 1 cannot be read as json"),
    ("train.jsonl", GOOD + b'{"text": "w1"', r"line 2 cannot be read as json"),
    ("train.jsonl", GOOD + b"\n[1, 2]\n", r"line 3 is \[1, 2\]; a row is an object"),
    ("train.jsonl", b"7\n", "line 1 is 7; a row is an object"),
    ("train.jsonl", b"null\n", "line 1 is None; a row is an object"),
    ("train.jsonl", b'"text"\n', "line 1 is 'text'; a row is an object"),
    ("train.jsonl", b"[" * 100_000, "line 1 cannot be read as json"),
    ("train.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}", "line 1 cannot be read as json"),
    ("train.jsonl", GOOD.decode().encode("utf-16"), r"is not UTF-8 text \(at byte 0\)"),
    ("train.jsonl", '{"text": "é"}'.encode("latin-1"), r"is not UTF-8 text \(at byte 10\)"),
    ("train.jsonl", b"\x00\x01\x02", "cannot be read as json"),
    ("train.jsonl", as_folder, "is a folder; a file of rows is needed"),
    ("train.jsonl.gz", GOOD, "is not a whole gzip file"),
    ("train.jsonl.gz", gzip.compress(GOOD)[:-9], "is not a whole gzip file"),
    ("train.jsonl.gz", gzip.compress(GOOD)[:10] + b"\xff" * 20, "is not a whole gzip file"),
    ("train.csv.gz", HEADER, "is not a whole gzip file"),
    ("train.json", b"", "is empty"),
    ("train.json", b"[]", "is empty"),
    ("train.json", b"[1]", "train.json, row 1 is 1; a row is an object"),
    ("train.json", b'[{"text": "a"}, null]', "train.json, row 2 is None"),
    ("train.json", b'[{"text": "a"}', "train.json cannot be read as json"),
    ("train.csv", b"", "is empty"),
    ("train.csv", HEADER, "is empty"),
    ("train.csv", HEADER + b"a,0\nb\n", r"row 2 \(counted from 1\) ends in line 3 with 1 fields .* names 2 columns"),
    ("train.csv", HEADER + b"a,0,1\n", "row 1 .* with 3 fields"),
    ("train.csv", HEADER + b'"a,0\n', "line 2: unexpected end of data"),
    ("train.csv", HEADER + b'"a"b,0\n', "cannot be read as csv: line 2"),
    ("train.csv", b"text,text\na,0\n", "the header names 'text' more than once"),
    ("train.csv", HEADER + b"\xff,0\n", "is not UTF-8 text"),
    ("train.csv", as_folder, "is a folder"),
    ("train.tsv", b"text\tlabel\na\n", "row 1 .* with 1 fields"),
    ("train.parquet", GOOD, "'train.parquet' cannot be read as parquet"),
    ("train.parquet", b"", "'train.parquet' cannot be read as parquet"),
    ("train.parquet", b"PAR1" + b"\x00" * 20 + b"PAR1", "'train.parquet' cannot be read as parquet"),
    ("train.parquet", as_folder, "is a folder"),
    ("train.parquet.gz", gzip.compress(b"PAR1"), "parquet files are not gzipped; unpack it"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BAD)])
def test_a_bad_file_is_one_line_that_says_where(
    name: str,
    content: bytes | Callable[[Path], None],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bad_input(f"{name}: {message}")
    file = tmp_path / name
    file.write_bytes(content) if isinstance(content, bytes) else content(file)
    with pytest.raises(DataError, match=message) as caught:
        load_split(Source(folder=tmp_path), ("train",))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["null", "NA", "None", "nan", "", "NaN", "N/A", "#N/A", "1", "1.50", "true", "<NA>"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz"])
def test_texts_of_a_table_are_texts(text: str, suffix: str, tmp_path: Path) -> None:
    lines = f"text,label\n{text},0\nw1 w2,1\n"
    lines = lines.replace(",", "\t") if suffix == "tsv" else lines
    packed = gzip.compress(lines.encode()) if suffix.endswith("gz") else lines.encode()
    (tmp_path / f"train.{suffix}").write_bytes(packed)
    found = load_split(Source(folder=tmp_path), ("train",))
    assert found == [{"text": text, "label": "0"}, {"text": "w1 w2", "label": "1"}]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_and_byte_order_marks_are_no_data(mark: bytes, end: bytes, tmp_path: Path) -> None:
    wanted = [{"text": 'a, "b"\u2028c', "label": "0"}, {"text": "d", "label": "1"}]
    table = ["text,label", '"a, ""b""\u2028c",0', "", "d,1", ""]
    lines = ['{"text": "a, \\"b\\"\u2028c", "label": "0"}', "", '{"text": "d", "label": "1"}']
    for name, content in (("csv", table), ("jsonl", lines), ("json", lines)):
        file = tmp_path / f"train.{name}"
        file.write_bytes(mark + end.join(line.encode() for line in content))
        assert load_split(Source(folder=tmp_path), ("train",)) == wanted
        file.unlink()


def test_fields_of_any_length_and_nested_columns_are_read(tmp_path: Path) -> None:
    long = "w1 " * 60_000
    (tmp_path / "train.csv").write_text(f"text,label\n{long},0\n")
    assert load_split(Source(folder=tmp_path), ("train",))[0]["text"] == long
    (tmp_path / "train.jsonl").write_text('{"text": "a", "more": {"b": [1, {"c": null}]}}\n{"text": "a", "more": 3}\n')
    assert load_split(Source(folder=tmp_path), ("train",))[1]["more"] == 3


def test_a_drawn_row_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(f'{{"text": "w{i + 1}"}}\n' for i in range(9)))
    drawn = sample(load_split(Source(folder=tmp_path), ("train",)), 5, 3)
    assert [row["text"] for row in drawn] != ["w1", "w2", "w3", "w4", "w5"]
    for i, row in enumerate(drawn):
        assert drawn.where(i) == f"train.jsonl, row {row['text'][1:]} (counted from 1)"
    assert drawn[1:3].where(0) == drawn.where(1)
    assert drawn.split == "train"


def test_the_hub_is_as_quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    from datasets.utils import logging as log

    before = log.get_verbosity()
    with pytest.raises(DataError, match="cannot be loaded from the hub"):
        load_split(Source(hub="nobody/nothing"), ("train",))
    assert log.get_verbosity() == before
    assert capfd.readouterr().out == ""
    assert not [
        record for record in caplog.records if record.name.startswith("datasets") and record.levelno > logging.INFO
    ]
