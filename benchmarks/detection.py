"""What it costs to look at a model and to prove what was found, in FB of `cost.py` (float32).

python benchmarks/detection.py [--cases sst2,bert-base,distilbert] [--repeats 3]

The models have rows in the family table; here they are looked at as if they had none.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from common import DOCS, write_result, write_table
from cost import case, forward_backward
from faster_pruner.data.batches import pack
from faster_pruner.model.detection.detect import detect
from faster_pruner.model.detection.proof import proved
from faster_pruner.model.limits import made_up_inputs
from faster_pruner.model.passes import inference
from faster_pruner.model.spec import resolve
from faster_pruner.options import CalibrationOptions


def look(model: Any) -> tuple[float, int]:
    """Seconds, and how many sublayers were proved."""
    started = time.perf_counter()
    inputs = made_up_inputs(model, 3, 10, padded=True)
    with inference(model):
        family, _ = proved(model, detect(model, inputs).family, inputs)
    return time.perf_counter() - started, len(resolve(model, family))


def main() -> None:
    """Measure in turn and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="sst2,bert-base,distilbert")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cpu")
    rows: list[dict[str, Any]] = []
    lines = ["| model | calibration rows | looked at and proved, FB | range | sublayers |", "|---|---|---|---|---|"]
    for name in options.cases.split(","):
        model, encoded = case(name, device)
        batches = pack(encoded, tokens_per_batch=CalibrationOptions().tokens_per_batch, device=device)
        forward_backward(model, batches[-2:], "float32")
        shares: list[float] = []
        count = 0
        for _ in range(options.repeats):
            unit = forward_backward(model, batches, "float32")
            seconds, count = look(model)
            shares.append(seconds / unit)
        rows.append({"case": name, "rows": len(encoded), "fb": shares, "sublayers": count})
        middle, low, high = statistics.median(shares), min(shares), max(shares)
        lines.append(f"| {name} | {len(encoded)} | **{middle:.1%}** | {low:.1%}-{high:.1%} | {count} |")
        print(lines[-1], flush=True)
    write_result("cost-detection", rows)
    write_table(DOCS / "cost.md", "detection", lines)


if __name__ == "__main__":
    main()
