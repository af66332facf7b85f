"""Class indices of data that say what they call their classes mean what the model calls so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from faster_pruner import Columns, Data, evaluate

NAMES = ("No", "yes", "maybe")
TEXTS = ["w1 w2", "w3", "w4 w5 w6", "w7 w8", "w9", "w10 w11"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_texts_in_parquet_files(tmp_path: Path, order: tuple[int, ...]) -> None:
    import datasets

    ids: dict[str, Any] = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    tiny.make_model(labels=3, **ids).save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    names = [NAMES[i].upper() for i in order]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = [{"text": text, "label": NAMES[i % 3]} for i, text in enumerate(TEXTS)]
    data = Data(folder=tmp_path, columns=Columns(text="text"))
    tiny.write_jsonl(tmp_path / "validation.jsonl", rows)
    wanted = evaluate(tmp_path / "model", data)
    (tmp_path / "validation.jsonl").unlink()
    numbered = [{**row, "label": names.index(row["label"].upper())} for row in rows]
    datasets.Dataset.from_list(numbered, features=features).to_parquet(str(tmp_path / "validation.parquet"))
    assert evaluate(tmp_path / "model", data) == wanted
