"""GLUE (Wang et al. 2019) as in the hub's nyu-mll/glue: its columns, labels and metrics."""

from __future__ import annotations

from faster_pruner.data.tasks import Task

HUB = "nyu-mll/glue"
_PLAIN = ("accuracy", "loss", "calibration_error")
_WITH_F1 = ("accuracy", "f1", "loss", "calibration_error")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, Task] = {
    "cola": Task(
        name="cola",
        text_column="sentence",
        metrics=("matthews", *_PLAIN),
        label_names=("unacceptable", "acceptable"),
        hub=HUB,
        hub_config="cola",
    ),
    "sst2": Task(
        name="sst2",
        text_column="sentence",
        metrics=_PLAIN,
        label_names=("negative", "positive"),
        hub=HUB,
        hub_config="sst2",
    ),
    "mrpc": Task(
        name="mrpc",
        text_column="sentence1",
        pair_column="sentence2",
        metrics=_WITH_F1,
        label_names=("not_equivalent", "equivalent"),
        hub=HUB,
        hub_config="mrpc",
    ),
    "stsb": Task(
        name="stsb",
        text_column="sentence1",
        pair_column="sentence2",
        metrics=("pearson", "spearman", "squared_error"),
        hub=HUB,
        hub_config="stsb",
    ),
    "qqp": Task(
        name="qqp",
        text_column="question1",
        pair_column="question2",
        metrics=_WITH_F1,
        label_names=("not_duplicate", "duplicate"),
        hub=HUB,
        hub_config="qqp",
    ),
    "mnli": Task(
        name="mnli",
        text_column="premise",
        pair_column="hypothesis",
        metrics=_PLAIN,
        label_names=("entailment", "neutral", "contradiction"),
        evaluation=(
            ("validation_matched", ("validation_matched", "dev_matched", "validation")),
            ("validation_mismatched", ("validation_mismatched", "dev_mismatched")),
        ),
        hub=HUB,
        hub_config="mnli",
    ),
    "qnli": Task(
        name="qnli",
        text_column="question",
        pair_column="sentence",
        metrics=_PLAIN,
        label_names=_ENTAILMENT,
        hub=HUB,
        hub_config="qnli",
    ),
    "rte": Task(
        name="rte",
        text_column="sentence1",
        pair_column="sentence2",
        metrics=_PLAIN,
        label_names=_ENTAILMENT,
        hub=HUB,
        hub_config="rte",
    ),
}
