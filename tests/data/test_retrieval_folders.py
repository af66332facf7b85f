"""Retrieval folders: what is read of documents, queries and judgements, and what is refused where it stands."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

import tiny
from badness import bad_input
from faster_pruner.data.retrieval import is_retrieval_folder, read_collection, texts_to_calibrate
from faster_pruner.errors import DataError

MANY = 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save_collection(tmp_path / "beir")


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def judgements(folder: Path, split: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for line in (folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        found.setdefault(query, {})[document] = float(score)
    return found


def test_documents_are_titles_and_texts_and_queries_those_of_the_test_split(folder: Path) -> None:
    found = read_collection(folder, most_documents=MANY)
    corpus, queries = lines(folder / "corpus.jsonl"), lines(folder / "queries.jsonl")
    assert found.ids == [row["_id"] for row in corpus]
    assert [row["text"] for row in found.documents] == [f"{row['title']} {row['text']}".strip() for row in corpus]
    judged = judgements(folder, "test")
    assert found.split == "test"
    assert found.query_ids == [row["_id"] for row in queries if row["_id"] in judged]
    assert [row["text"] for row in found.queries] == [row["text"] for row in queries if row["_id"] in judged]
    for name, relevant in zip(found.query_ids, found.relevance, strict=True):
        assert relevant == {document: score for document, score in judged[name].items() if score > 0}


def test_gzipped_files_numbers_as_ids_and_dev_in_place_of_test(folder: Path) -> None:
    before = read_collection(folder, most_documents=MANY)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        content = (folder / name).read_bytes().replace(b'"d', b'"').replace(b"\td", b"\t")
        if name == "corpus.jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
            content = b"".join(json.dumps({**row, "_id": int(row["_id"])}).encode() + b"\n" for row in rows)
        (folder / name).unlink()
        (folder / f"{name.replace('test', 'dev')}.gz").write_bytes(gzip.compress(content))
    after = read_collection(folder, most_documents=MANY)
    assert after.split == "dev"
    assert [f"d{name}" for name in after.ids] == before.ids
    assert [row["text"] for row in after.documents] == [row["text"] for row in before.documents]


def test_of_a_large_corpus_all_judged_documents_and_a_sample_are_ranked(folder: Path) -> None:
    judged = {document for own in judgements(folder, "test").values() for document in own}
    most = len(judged) + 5
    found = read_collection(folder, most_documents=most)
    assert judged < set(found.ids)
    assert len(found.ids) == most
    assert found.split == f"test ({most} of 60 documents)"
    assert read_collection(folder, most_documents=most).ids == found.ids
    assert set(read_collection(folder, most_documents=1).ids) == judged


def test_the_sample_is_uniform(folder: Path) -> None:
    """Every document is drawn about as often as any other, wherever it stands."""
    counts = dict.fromkeys((row["_id"] for row in lines(folder / "corpus.jsonl")), 0)
    for seed in range(400):
        for row in texts_to_calibrate(folder, 6, seed=seed)[0]:
            counts[row["_id"]] += 1
    # 400 draws of 3 in 60: 20 each, with a standard deviation of 4.4
    assert sum(counts.values()) == 400 * 3
    assert min(counts.values()) > 4
    assert max(counts.values()) < 40


def test_calibration_mixes_documents_with_queries_that_nobody_is_judged_by(folder: Path) -> None:
    file = folder / "qrels" / "train.tsv"
    # a query that trains and tests, too
    file.write_text(file.read_text() + "q1\td1\t1\n")
    documents, queries = texts_to_calibrate(folder, 200, seed=0)
    assert {row["_id"] for row in queries} == set(judgements(folder, "train")) - {"q1"}
    assert len(documents) == 60
    documents, queries = texts_to_calibrate(folder, 10, seed=0)
    assert (len(documents), len(queries)) == (5, 5)
    assert [row["_id"] for row in texts_to_calibrate(folder, 10, seed=0)[0]] == [row["_id"] for row in documents]
    file.unlink()
    documents, queries = texts_to_calibrate(folder, 10, seed=0)
    assert (len(documents), len(queries)) == (10, 0)


def test_blank_documents_are_found_by_nobody(folder: Path) -> None:
    judged = next(iter(read_collection(folder, most_documents=MANY).relevance[0]))
    corpus = lines(folder / "corpus.jsonl")
    rows = [{"_id": judged, "text": " "} if row["_id"] == judged else row for row in corpus]
    tiny.write_jsonl(folder / "corpus.jsonl", [*rows, {"_id": "blank", "text": ""}])
    found = read_collection(folder, most_documents=MANY)
    assert {judged, "blank"}.isdisjoint(found.ids)
    # and are missed all the same
    assert judged in found.relevance[0]
    assert {judged, "blank"}.isdisjoint(row["_id"] for row in texts_to_calibrate(folder, 999, seed=0)[0])


def test_two_of_three_parts_make_such_a_folder(folder: Path, tmp_path: Path) -> None:
    assert is_retrieval_folder(folder)
    assert not is_retrieval_folder(tmp_path)
    (folder / "queries.jsonl").unlink()
    assert is_retrieval_folder(folder)
    (folder / "corpus.jsonl").unlink()
    assert not is_retrieval_folder(folder)


HEADER = "query-id\tcorpus-id\tscore\n"
BAD: list[tuple[str, str | None, str]] = [
    ("queries.jsonl", None, r"has no queries.jsonl \(.gz too\)"),
    ("corpus.jsonl", None, r"has no corpus.jsonl \(.gz too\)"),
    ("qrels/test.tsv", None, r"has no test.tsv and no dev.tsv"),
    ("queries.jsonl", "", "qrels/test.tsv, row 1 .*: query-id 'q1' is not in queries.jsonl"),
    ("corpus.jsonl", "", "qrels/test.tsv, row 1 .*: corpus-id 'd[0-9]+' is not in corpus.jsonl"),
    ("qrels/test.tsv", "", "qrels/test.tsv has no query with a relevant document"),
    ("qrels/test.tsv", HEADER, "qrels/test.tsv has no query with a relevant document"),
    ("qrels/test.tsv", HEADER + "q1\td1\t0\n", "qrels/test.tsv has no query with a relevant document"),
    ("qrels/test.tsv", HEADER + "q1\td1\t1\nq1\tnone\t1\n", "qrels/test.tsv, row 2 .*: corpus-id 'none' is not in"),
    ("qrels/test.tsv", HEADER + "q1\td1\t1\nnobody\td1\t1\n", "qrels/test.tsv, row 2 .*: query-id 'nobody' is not in"),
    ("qrels/test.tsv", HEADER + "q1\td1\t1\nq1\td2\tmuch\n", "row 2 .*: score 'much' is no number"),
    ("qrels/test.tsv", HEADER + "q1\td1\tnan\n", "row 1 .*: score 'nan' is no number"),
    ("qrels/test.tsv", HEADER + "q1\td1\t1\nq1\td1\t2\n", "row 2 .*: query 'q1' and document 'd1' have two scores"),
    ("qrels/test.tsv", HEADER + "q1\td1\n", "test.tsv: row 1 .* with 2 fields where the header names 3"),
    ("qrels/test.tsv", "q1\td1\t1\nq3\td1\t1\n", "begins with .*; a header is needed that names query-id, corpus-id"),
    ("qrels/test.tsv", "q1 0 d1 1\nq3 0 d1 1\n", "begins with .*; a header is needed"),
    ("qrels/train.tsv", HEADER + "nobody\td1\t1\n", "qrels/train.tsv, row 1 .*: query-id 'nobody' is not in"),
    ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n', "line 2: _id 'd1' is that of line 1"),
    ("corpus.jsonl", '{"text": "a"}\n', "corpus.jsonl, line 1: _id is None; a text is needed"),
    ("corpus.jsonl", '{"_id": true, "text": "a"}\n', "corpus.jsonl, line 1: _id is True"),
    ("corpus.jsonl", '{"_id": "a"}\n', "corpus.jsonl, line 1: text is None; a text is needed"),
    ("corpus.jsonl", '{"_id": "a", "text": "a", "title": ["b"]}\n', r"line 1: title is \['b'\]; a text is needed"),
    ("corpus.jsonl", '\n{"_id": "a", "text": \n', "corpus.jsonl, line 2 cannot be read as json"),
    ("corpus.jsonl", "[]\n", "corpus.jsonl, line 1 is .*; a row is an object"),
    ("queries.jsonl", '{"_id": "q1", "text": " "}\n', "queries.jsonl, line 1: query 'q1' has no text"),
    ("queries.jsonl", '{"_id": "q1", "text": "a"}\n' * 2, "queries.jsonl, line 2: _id 'q1' is that of line 1, too"),
    ("queries.jsonl", '{"_id": "q1", "text": 7}\n', "queries.jsonl, line 1: text is 7; a text is needed"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_what_is_no_such_folder_is_one_line(name: str, content: str | None, message: str, folder: Path) -> None:
    bad_input(f"{name}: {content}")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_collection(folder, most_documents=MANY)
        texts_to_calibrate(folder, 20, seed=0)
    assert "\n" not in str(caught.value)


def test_damaged_gzip_is_one_line(folder: Path) -> None:
    bad_input("a corpus that is half a gzip file")
    content = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(content[:-20])
    with pytest.raises(DataError, match="'corpus.jsonl.gz' is not a whole gzip file"):
        read_collection(folder, most_documents=MANY)
