"""Retrieval folders, as BEIR has them: documents, queries, and which document was judged to answer which query.

`corpus.jsonl` (`_id`, `text`, maybe `title`), `queries.jsonl` (`_id`, `text`) and `qrels/<split>.tsv` (`query-id`,
`corpus-id`, `score`), each gzipped or not. A document is its title and its text, with a space between (Thakur et al.,
"BEIR", 2021). Corpora may be larger than memory: of a corpus only the documents stay that are asked for.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from faster_pruner.checks import shown
from faster_pruner.data.files import Row, Rows, numbered_objects, read_rows
from faster_pruner.data.sources import TRAIN_SPLITS, sample
from faster_pruner.errors import DataError

# The column that documents and queries have their text in, once they are read.
TEXT = "text"
# Splits that are evaluated, the first one that exists.
EVALUATED = ("test", "dev", "validation", "val")

_CORPUS, _QUERIES, _JUDGEMENTS = "corpus.jsonl", "queries.jsonl", "qrels"
_ID, _TITLE = "_id", "title"
_COLUMNS = ("query-id", "corpus-id", "score")
# Which unjudged documents of a corpus that is too large are ranked: the same ones for every model.
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class JudgedCollection:
    """Documents, queries, and what was judged.

    Attributes:
        split: that the judgements are of; of a corpus that was too large with how many documents there are.
        documents: with `TEXT`.
        ids: of the documents.
        queries: with `TEXT`; those that have a relevant document.
        query_ids: of them.
        relevance: of each query, its relevant documents by id, and how relevant each is, above 0.
    """

    split: str
    documents: Rows
    ids: list[str]
    queries: Rows
    query_ids: list[str]
    relevance: list[dict[str, float]]


def is_retrieval_folder(folder: Path) -> bool:
    """Whether a folder has two of the three parts, or more: one that misses is an error of its own then."""
    found = [_file(folder, _CORPUS) is not None, _file(folder, _QUERIES) is not None, (folder / _JUDGEMENTS).is_dir()]
    return sum(found) > 1


def read_collection(folder: Path, *, most_documents: int) -> JudgedCollection:
    """What a model is judged by.

    Args:
        folder: a retrieval folder.
        most_documents: of a larger corpus the judged documents are ranked, and a sample of the others, so that these
            are so many together.

    Raises:
        DataError: a file is missing or damaged, judges nothing, or names what does not exist.
    """
    judged = _evaluated(folder)
    queries = _queries(folder, judged)
    named = {document for own in judged.scores.values() for document in own}
    documents, corpus = _documents(folder, named=named, others=max(0, most_documents - len(named)), seed=_SEED)
    ids = [row[_ID] for row in documents]
    judged.check("corpus-id", set(ids), _CORPUS)
    # nothing can be found by a blank document; where it was judged, it counts as missed
    relevant = judged.relevant
    with_text = [i for i, row in enumerate(documents) if row[TEXT].strip()]
    split = judged.rows.split
    return JudgedCollection(
        split=split if corpus <= most_documents else f"{split} ({len(with_text)} of {corpus} documents)",
        documents=documents.chosen(with_text),
        ids=[ids[i] for i in with_text],
        queries=queries,
        query_ids=[row[_ID] for row in queries],
        relevance=[relevant[row[_ID]] for row in queries],
    )


def texts_to_calibrate(folder: Path, count: int, *, seed: int) -> tuple[Rows, Rows]:
    """Documents and queries, each with `TEXT`: together at most `count`, and at most half of them queries.

    Queries are those of the training judgements, where there are any; never one that is judged by.

    Raises:
        DataError: a file is missing or damaged.
    """
    held_out = _evaluated(folder).scores
    training, queries = _judgements(folder, TRAIN_SPLITS), Rows([])
    if training is not None:
        asked = _queries(folder, training, all_of_them=True)
        asked = asked.chosen([i for i, row in enumerate(asked) if row[_ID] not in held_out])
        # a half, measured on docstrings (MiniLM-L6, 768 texts, 40 % of the MACs, one seed): nDCG@10 39.4, where a
        # quarter gives 38.3, and documents alone 38.4
        queries = sample(asked, count // 2, seed)
    documents, _ = _documents(folder, named=(), others=count - len(queries), seed=seed)
    return documents, queries


@dataclass(frozen=True)
class _Judgements:
    """One file of judgements.

    Attributes:
        rows: of the file.
        scores: by query and document.
    """

    rows: Rows
    scores: dict[str, dict[str, float]]

    @property
    def relevant(self) -> dict[str, dict[str, float]]:
        """Relevant documents of the queries that have any."""
        found = {query: {name: s for name, s in own.items() if s > 0} for query, own in self.scores.items()}
        return {query: own for query, own in found.items() if own}

    def check(self, column: str, known: Collection[str], file: str) -> None:
        """Raise DataError at the first id that is not known."""
        for i, row in enumerate(self.rows):
            if row[column] not in known:
                raise DataError(f"{self.rows.where(i)}: {column} {shown(row[column])} is not in {file}")


def _evaluated(folder: Path) -> _Judgements:
    """The judgements of the split that is evaluated. Raises DataError."""
    found = _judgements(folder, EVALUATED)
    if found is None:
        raise DataError(f"{str(folder / _JUDGEMENTS)!r} has no {EVALUATED[0]}.tsv and no {EVALUATED[1]}.tsv (.gz too)")
    if not found.relevant:
        raise DataError(f"{found.rows.place} has no query with a relevant document (a score above 0)")
    return found


def _judgements(folder: Path, names: Collection[str]) -> _Judgements | None:
    """The judgements of the first split that exists; None for none. Raises DataError."""
    for name in names:
        file = _file(folder / _JUDGEMENTS, f"{name}.tsv")
        if file is not None:
            read = read_rows(file, ".tsv", split=name)
            rows = Rows(list(read), place=f"{_JUDGEMENTS}/{file.name}", split=name)
            return _Judgements(rows, _scores(rows))
    return None


def _scores(rows: Rows) -> dict[str, dict[str, float]]:
    """By query and document. Raises DataError."""
    if rows and not set(_COLUMNS) <= set(rows[0]):
        raise DataError(
            f"{rows.place} begins with {shown(list(rows[0]))}; a header is needed that names {', '.join(_COLUMNS)}, "
            "with tabs between them"
        )
    found: dict[str, dict[str, float]] = {}
    for i, row in enumerate(rows):
        query, document, text = (row[column] for column in _COLUMNS)
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        # above the largest number that float32 has nothing can be summed
        if not abs(score) < 1e30:
            raise DataError(f"{rows.where(i)}: score {shown(text)} is no number")
        if found.setdefault(query, {}).setdefault(document, score) != score:
            raise DataError(f"{rows.where(i)}: query {shown(query)} and document {shown(document)} have two scores")
    return found


def _queries(folder: Path, judged: _Judgements, *, all_of_them: bool = False) -> Rows:
    """The queries that have a relevant document, or all that are judged. Raises DataError."""
    wanted = judged.scores if all_of_them else judged.relevant
    found: dict[str, tuple[int, Row]] = {}
    for line, row in _read(folder, _QUERIES):
        if row[_ID] not in judged.scores:
            continue
        where = f"{_QUERIES}, line {line}"
        if row[_ID] in found:
            raise DataError(f"{where}: _id {shown(row[_ID])} is that of line {found[row[_ID]][0]}, too")
        if not row[TEXT].strip():
            raise DataError(f"{where}: query {shown(row[_ID])} has no text")
        found[row[_ID]] = line, row
    judged.check("query-id", found, _QUERIES)
    return _rows([each for name, each in found.items() if name in wanted], _QUERIES, judged.rows.split)


def _documents(folder: Path, *, named: Collection[str], others: int, seed: int) -> tuple[Rows, int]:
    """Documents by name, blank ones included, a sample of the others that have text, and how many there are.

    One pass that keeps no more than it returns (algorithm R; Vitter, "Random Sampling with a Reservoir", 1985).
    """
    generator = random.Random(seed)
    kept: dict[str, tuple[int, Row]] = {}
    drawn: list[tuple[int, Row]] = []
    count = unnamed = 0
    for line, row in _read(folder, _CORPUS):
        count += 1
        if row[_ID] in named:
            _keep(kept, line, row)
        elif row[TEXT].strip():
            unnamed += 1
            if len(drawn) < others:
                drawn.append((line, row))
            elif (place := generator.randrange(unnamed)) < others:
                drawn[place] = line, row
    for line, row in drawn:
        _keep(kept, line, row)
    return _rows(sorted(kept.values(), key=lambda each: each[0]), _CORPUS, ""), count


def _keep(kept: dict[str, tuple[int, Row]], line: int, row: Row) -> None:
    """Keep a document. Raises DataError where there is one of its name."""
    if row[_ID] in kept:
        lines = sorted((line, kept[row[_ID]][0]))
        raise DataError(f"{_CORPUS}, line {lines[1]}: _id {shown(row[_ID])} is that of line {lines[0]}, too")
    kept[row[_ID]] = line, row


def _read(folder: Path, name: str) -> Iterator[tuple[int, Row]]:
    """Id and text of each line of a file, and the line's number. Raises DataError."""
    file = _file(folder, name)
    if file is None:
        raise DataError(f"{str(folder)!r} has no {name} (.gz too), which a retrieval folder needs")
    for line, row in numbered_objects(file):
        where, identifier = f"{file.name}, line {line}", row.get(_ID)
        if not isinstance(identifier, str | int) or isinstance(identifier, bool):
            raise DataError(f"{where}: _id is {shown(identifier)}; a text is needed")
        text = _text(row, TEXT, where)
        # queries have no titles
        title = _text({_TITLE: row.get(_TITLE) or ""}, _TITLE, where) if name == _CORPUS else ""
        yield line, {_ID: str(identifier), TEXT: f"{title} {text}".strip()}


def _text(row: Mapping[str, object], column: str, where: str) -> str:
    """The text in a column. Raises DataError."""
    text = row.get(column)
    if not isinstance(text, str):
        raise DataError(f"{where}: {column} is {shown(text)}; a text is needed")
    return text


def _rows(found: list[tuple[int, Row]], place: str, split: str) -> Rows:
    """Rows, numbered by their lines."""
    return Rows([row for _, row in found], numbers=[line for line, _ in found], place=place, split=split)


def _file(folder: Path, name: str) -> Path | None:
    """A file, gzipped or not; None where there is none."""
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
