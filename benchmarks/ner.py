"""Named entities: MiniLM-L6 fine-tuned on NCBI disease, pruned; entity F1 on the test and validation splits.

F1 is seqeval's strict one for IOB2, which the package judges by (an entity starts with its B-), and beside it the one
that seqeval gives by default, which most figures in papers and model cards are: there an I- may start an entity, too.

python benchmarks/ner.py            run, write results/ner.json (other seeds in it stay) and the table of docs/tasks.md
python benchmarks/ner.py --show     write the table from the JSON again
python benchmarks/ner.py --held-out compare calibration settings on training rows that no calibration set holds
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seqeval.metrics import f1_score
from torch import nn

from common import SHARED, mean_and_spread, read_result, summary, write_result, write_table
from faster_pruner.api.job import subject_of
from faster_pruner.api.rows import calibration_rows, describe, encoded, objective_for
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.checkpoint.saving import round_weights
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.sources import load_split, sample
from faster_pruner.data.tasks import Data
from faster_pruner.host.devices import pick_device
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Subject
from faster_pruner.model.limits import made_up_inputs
from faster_pruner.objectives.evaluation import evaluate, predict_rows
from faster_pruner.options import PRESETS, CalibrationOptions
from faster_pruner.runtimes.timing import measure

MODEL, ROWS = SHARED / "models" / "minilm-l6-ncbi", SHARED / "data" / "ner" / "ncbi_disease"
PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
DATA = Data(task="token-classification", folder=ROWS)
SPLITS = ("test", "validation")
BUDGETS = {"default": (0.7, 0.5, 0.3, 0.2), "kwon2022": (0.5, 0.3)}
SHAPE = (32, 128)
# Nothing is cut off: every word is judged.
LONGEST = 512
# Training rows that `--held-out` judges on.
HELD_OUT = 1024


def open_entities() -> tuple[Opened, Subject]:
    """The real token classifier."""
    opened = open_checkpoint(str(MODEL), device=pick_device(None))
    return opened, subject_of(opened, objective_for(opened, describe(DATA)))


def scores(model: nn.Module, subject: Subject, rows: EncodedRows) -> dict[str, float]:
    """Strict metrics, and seqeval's F1 by default, in percent."""
    predicted = predict_rows(model, subject.objective, rows)
    assert predicted.labels is not None
    found = evaluate(predicted, subject.objective, split="", rows=len(rows)).metrics
    starts = np.flatnonzero(np.diff(predicted.rows))
    config: Any = model.config
    names = config.id2label

    def tags(classes: np.ndarray) -> list[list[str]]:
        return [[names[int(c)] for c in row] for row in np.split(classes, starts + 1)]

    default = f1_score(tags(predicted.labels), tags(predicted.values.argmax(axis=1)))
    return {**found, "default_f1": 100 * float(default)}


def judged(model: nn.Module, subject: Subject, splits: dict[str, EncodedRows]) -> dict[str, float]:
    """Scores on every split, by "<split> <metric>"."""
    return {
        f"{split} {key}": round(x, 3)
        for split, rows in splits.items()
        for key, x in scores(model, subject, rows).items()
    }


def run(seeds: list[int]) -> None:
    """All methods, budgets and seeds, written after each seed; then the speed of the last seed's models."""
    opened, subject = open_entities()
    task = describe(DATA)
    source = DATA.source(task)
    splits = {name: encoded(load_split(source, (name,)), task, opened, LONGEST) for name in SPLITS}
    dense = judged(opened.model, subject, splits)
    print("dense", dense, flush=True)
    before = read_result("ner") or {"records": [], "speed_up": {}}
    records = [record for record in before["records"] if record["seed"] not in seeds]
    pruned_models: dict[str, nn.Module] = {}
    for seed in seeds:
        options = CalibrationOptions(seed=seed)
        for name, budgets in BUDGETS.items():
            method = PRESETS[name]
            rows = calibration_rows(source, task, opened, options, labelled=method.labels)
            calibrated = calibrate(subject, rows, method, options)
            for share in budgets:
                pruned = cut(calibrated, Budget(macs=share), method)
                round_weights(pruned.model, opened.dtype)
                pruned_models[f"{name} {share}"] = pruned.model
                figures = judged(pruned.model, subject, splits)
                records.append({"seed": seed, "method": name, "macs": share, "figures": figures})
                print(seed, name, share, figures, flush=True)
        found = {"task": "NCBI disease", "dense": dense, "records": records, "speed_up": before["speed_up"]}
        write_result("ner", found)
    inputs = [made_up_inputs(opened.model, *SHAPE)]
    speed_up = {key: measure(opened.model, model, inputs)[0].speed_up for key, model in pruned_models.items()}
    write_result("ner", {**found, "shape": SHAPE, "speed_up": speed_up})


def held_out(seeds: list[int], share: float, counts: list[int]) -> None:
    """Print scores on training rows outside the calibration set: what settings are judged by, if at all."""
    opened, subject = open_entities()
    task, method = describe(DATA), PRESETS["default"]
    train = load_split(DATA.source(task), ("train",))
    for seed in seeds:
        order = sample(train, len(train), seed)
        rest = encoded(order[-HELD_OUT:], task, opened, LONGEST)
        print(seed, "dense", scores(opened.model, subject, rest), flush=True)
        for count in counts:
            options = CalibrationOptions(rows=count, seed=seed)
            rows = encoded(order[:count], task, opened, options.max_length, labelled=False)
            moments = {
                "usual moments": method.selection,
                "moments of all": replace(method.selection, moment_tokens=None),
            }
            for words, selection in moments.items():
                how = replace(method, selection=selection)
                pruned = cut(calibrate(subject, rows, how, options), Budget(macs=share), how)
                print(seed, count, words, scores(pruned.model, subject, rest), flush=True)


def as_table(found: dict[str, Any]) -> list[str]:
    """The table of docs/tasks.md."""
    keys = [f"{split} {metric}" for split in SPLITS for metric in ("f1", "default_f1")]
    head = ["test, strict F1", "test, seqeval's default", "validation, strict F1", "validation, seqeval's default"]
    batch, tokens = found["shape"]
    runs: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for record in found["records"]:
        runs[record["method"], record["macs"]].append(record["figures"])
    lines = [
        "| method | MACs kept | " + " | ".join(head) + f" | speed-up at {batch} x {tokens} |",
        "|---" * (len(head) + 3) + "|",
        "| dense | 1 | " + " | ".join(f"{found['dense'][key]:.2f}" for key in keys) + " | 1 |",
    ]
    for (name, share), figures in sorted(runs.items(), key=lambda item: (item[0][0], -item[0][1])):
        cells = [name, f"{share:g}", *(mean_and_spread(summary(figures), key) for key in keys)]
        lines.append("| " + " | ".join([*cells, f"{found['speed_up'][f'{name} {share}']:.2f}x"]) + " |")
    return lines


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--macs", type=float, default=0.3, help="with --held-out")
    parser.add_argument("--rows", default="2048,4408", help="with --held-out")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    torch.manual_seed(0)
    if arguments.held_out:
        held_out(seeds, arguments.macs, [int(count) for count in arguments.rows.split(",")])
        return
    if not arguments.show:
        run(seeds)
    table = as_table(read_result("ner"))
    print("\n".join(table))
    write_table(PAGE, "ner", table)


if __name__ == "__main__":
    main()
