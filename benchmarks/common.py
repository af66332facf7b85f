"""What the benchmarks share: the real models and rows, and where results go."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

from torch import nn

from faster_pruner.api.job import subject_of
from faster_pruner.api.rows import objective_for
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.costs.cost import Macs, total
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.glue import GLUE
from faster_pruner.data.sources import load_split, sample
from faster_pruner.data.tasks import Data
from faster_pruner.host.devices import environment as describe_machine
from faster_pruner.host.devices import pick_device
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.objectives.classification import encode
from faster_pruner.objectives.evaluation import evaluate, predict_rows

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
SHARED = Path(os.environ.get("FASTER_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))
# Calibration rows per task, as in the reference measurements.
ROWS = {"sst2": 2048, "mrpc": 512}


def open_model(task: str, device: str | None = None) -> Opened:
    """The real 6-layer BERT fine-tuned for `task`."""
    return open_checkpoint(str(SHARED / "models" / f"minilm-l6-{task}"), device=pick_device(device))


def rows_of(opened: Opened, task: str, split: tuple[str, ...]) -> EncodedRows:
    """All rows of a split, tokenised."""
    rows = load_split(Data(folder=SHARED / "data" / "glue").source(GLUE[task]), split)
    return encode(rows, GLUE[task], opened.processor, config=opened.model.config, limit=128)


def calibration_rows(opened: Opened, task: str, count: int, seed: int, *, labelled: bool = True) -> EncodedRows:
    """A seeded calibration set of training rows, tokenised."""
    rows = load_split(Data(folder=SHARED / "data" / "glue").source(GLUE[task]), ("train",))
    drawn = sample(rows, count, seed)
    return encode(drawn, GLUE[task], opened.processor, config=opened.model.config, limit=128, labelled=labelled)


def subject_for(opened: Opened, task: str) -> Subject:
    """A checkpoint as something to prune, judged by the task's metrics."""
    return subject_of(opened, objective_for(opened, GLUE[task]))


def metrics_of(model: nn.Module, subject: Subject, rows: EncodedRows) -> dict[str, float]:
    """Metrics of a model on rows."""
    predicted = predict_rows(model, subject.objective, rows)
    return evaluate(predicted, subject.objective, split="", rows=len(rows)).metrics


def macs_left(calibrated: Calibrated, sublayers: Any) -> float:
    """MACs of sublayers as a share of the dense model's."""
    cost = Macs(calibrated.data.lengths)
    return total(cost, sublayers) / total(cost, calibrated.sublayers)


def write_result(name: str, rows: Any) -> None:
    """benchmarks/results/<name>.json, with the environment inside."""
    RESULTS.mkdir(exist_ok=True)
    found = {"environment": environment(), "command": " ".join(["python", *sys.argv]), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def read_result(name: str) -> Any:
    """The rows of an earlier run, None when there is none."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text())["rows"] if file.is_file() else None


def write_table(page: Path, name: str, lines: list[str]) -> None:
    """Replace what stands between the markers of a table in a page. Raises ValueError when it has none."""
    start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
    head, rest = page.read_text().split(start, 1)
    page.write_text(head + start + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1])


def environment() -> dict[str, str]:
    """Versions and hardware."""
    return {
        **describe_machine(pick_device(None)),
        "cores": str(os.cpu_count()),
        "system": platform.system(),
    }


def status(process: int | str = "self") -> dict[str, int]:
    """Bytes that the system counts of a process: resident, of these anonymous, and what limits of its data count."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {key: int(found[key].split()[0]) * 1024 for key in ("VmRSS", "RssAnon", "VmData") if key in found}


def peak_memory_mb() -> float:
    """Peak resident memory of this process."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """The runs of several seeds with the mean and the spread (sample standard deviation) of every figure."""
    return {
        "runs": runs,
        "mean": {key: statistics.mean(run[key] for run in runs) for key in runs[0]},
        "spread": {key: statistics.stdev(run[key] for run in runs) if len(runs) > 1 else 0.0 for key in runs[0]},
    }


def mean_and_spread(row: dict[str, Any], key: str) -> str:
    """One figure of a `summary`, as a cell of a table."""
    return f"{row['mean'][key]:.2f} ± {row['spread'][key]:.2f}"
