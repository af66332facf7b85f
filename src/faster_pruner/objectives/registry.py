"""The kinds of tasks: for each one how rows are encoded and what a model is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.glue import GLUE
from faster_pruner.data.tasks import Task
from faster_pruner.errors import OptionError, UnsupportedModelError
from faster_pruner.model.classes import auto_classes_of
from faster_pruner.model.head import Head
from faster_pruner.model.scoring import Scoring
from faster_pruner.objectives import answering, audio, classification, embedding, image, language, reranking, tokens
from faster_pruner.objectives.objective import Objective


class Encode(Protocol):
    """From rows as loaded to what a model takes."""

    def __call__(
        self,
        rows: Sequence[Mapping[str, Any]],
        task: Task,
        processor: Any,
        /,
        *,
        config: Any,
        limit: int,
        labelled: bool = True,
    ) -> EncodedRows:
        """Encode the columns that a task names.

        Args:
            rows: as loaded.
            task: columns, all of them named, and label names.
            processor: that goes with the model (`Kind.processor`).
            config: of the model: number and names of its labels.
            limit: most tokens of a row.
            labelled: read the label column; without it the rows carry no labels.

        Raises:
            DataError: a column is missing, or a row cannot be used.
        """
        ...


class Draw(Protocol):
    """From texts to encoded rows that are no texts: a calibration set."""

    def __call__(
        self,
        rows: Sequence[Mapping[str, Any]],
        task: Task,
        processor: Any,
        /,
        *,
        limit: int,
        count: int,
        seed: int,
    ) -> EncodedRows:
        """The first `count` rows of at most `limit` tokens in the order of a seed. Raises DataError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of task.

    Attributes:
        name: the usual one: the hub's, but for "language-modeling".
        auto_class: name of transformers' auto class for such models.
        objective: of a model, from its config.
        encode: from rows to what such a model takes.
        columns: usual names of the columns: the first or only input, the second one (None for none), the label.
        processor: what turns rows into inputs: "tokenizer", "image processor" or "feature extractor".
        headed: of a model whose head is no part of its class (pooling), from that head; None elsewhere.
        scored: of a model whose folder says how its one score is used, from what it says; None elsewhere.
        together: rows with the same first input belong together: of a single file they are held back together.
        draw: encoded rows of texts that are no rows themselves, drawn by a seed: the first of them are the same however
            many are asked for.
    """

    name: str
    auto_class: str
    objective: Callable[[Any], Objective]
    encode: Encode
    columns: tuple[str, str | None, str]
    processor: str = "tokenizer"
    headed: Callable[[Head], Objective] | None = None
    scored: Callable[[Scoring], Objective] | None = None
    together: bool = False
    draw: Draw | None = None

    def completed(self, task: Task) -> Task:
        """A task of this kind, with the usual columns where it names none."""
        first, second, label = self.columns
        return replace(
            task,
            kind=self.name,
            text_column=task.text_column or first,
            pair_column=task.pair_column or second,
            label_column=task.label_column or label,
        )


def kinds_of(model: Any) -> list[Kind]:
    """The kinds of tasks that a transformers model can be for, by its class, the usual one first.

    Raises:
        UnsupportedModelError: none is known for its class.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    text = getattr(model, "main_input_name", "") == "input_ids"
    for auto in auto_classes_of(name, str(getattr(config, "model_type", ""))):
        found = [kind for kind in KINDS.values() if kind.auto_class == auto and (text or kind.headed is None)]
        if found:
            return found
    autos = dict.fromkeys(kind.auto_class for kind in KINDS.values())
    known = " or ".join("..." + auto.removeprefix("AutoModel") for auto in autos)
    raise UnsupportedModelError(
        f"this is a {name}; a {known} is needed (any other model can be pruned from Python, for an objective of your "
        "own)"
    )


def kind_of(model: Any, scoring: Scoring | None = None) -> Kind:
    """The kind of task that a transformers model was made for, from its class.

    Args:
        model: of the transformers library.
        scoring: what its folder says of its one score, if anything: then it is for that.

    Raises:
        UnsupportedModelError: none is known for its class.
    """
    own = kinds_of(model)
    return next((kind for kind in own if (kind.scored is None) == (scoring is None)), own[0])


def kind_for(model: Any, task: Task, scoring: Scoring | None = None) -> Kind:
    """The kind of a task that a model can be for; where the task says nothing, what the model was made for.

    Raises:
        UnsupportedModelError: none is known for the model's class.
        OptionError: the task is of a kind that it is not for.
    """
    usual = kind_of(model, scoring)
    if not task.kind:
        return usual
    for kind in kinds_of(model):
        if kind.name == task.kind:
            return kind
    raise OptionError(
        f"this is a {type(model).__name__}, made for {usual.name}; task {task.name or task.kind!r} is of the kind "
        f"{task.kind}, for which a ...{KINDS[task.kind].auto_class.removeprefix('AutoModel')} is needed",
        option="task",
    )


def objective_of(model: Any) -> Objective:
    """The objective that a transformers model was made for, from its class and config.

    Raises:
        UnsupportedModelError: none is known for its class.
    """
    return kind_of(model).objective(model.config)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name=classification.TASK,
            auto_class=classification.AUTO_CLASS,
            objective=classification.objective_for,
            encode=classification.encode,
            columns=classification.COLUMNS,
        ),
        Kind(
            name=reranking.TASK,
            auto_class=reranking.AUTO_CLASS,
            objective=reranking.objective_for,
            encode=reranking.encode,
            columns=reranking.COLUMNS,
            scored=reranking.scored,
            together=True,
        ),
        Kind(
            name=tokens.TASK,
            auto_class=tokens.AUTO_CLASS,
            objective=tokens.objective_for,
            encode=tokens.encode,
            columns=tokens.COLUMNS,
        ),
        Kind(
            name=answering.TASK,
            auto_class=answering.AUTO_CLASS,
            objective=answering.objective_for,
            encode=answering.encode,
            columns=answering.COLUMNS,
        ),
        Kind(
            name=language.TASK,
            auto_class=language.AUTO_CLASS,
            objective=language.objective_for,
            encode=language.encode,
            draw=language.draw,
            columns=language.COLUMNS,
        ),
        Kind(
            name=embedding.TASK,
            auto_class=embedding.AUTO_CLASS,
            objective=embedding.without_head,
            encode=embedding.encode,
            columns=embedding.COLUMNS,
            headed=embedding.objective_for,
        ),
        Kind(
            name=image.TASK,
            auto_class=image.AUTO_CLASS,
            objective=image.objective_for,
            encode=image.encode,
            columns=image.COLUMNS,
            processor="image processor",
        ),
        Kind(
            name=audio.TASK,
            auto_class=audio.AUTO_CLASS,
            objective=audio.objective_for,
            encode=audio.encode,
            columns=audio.COLUMNS,
            processor="feature extractor",
        ),
    )
}

# Tasks that are known by name.
TASKS: dict[str, Task] = {name: replace(task, kind=classification.TASK) for name, task in GLUE.items()}
