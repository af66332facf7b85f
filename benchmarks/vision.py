"""Images: a small ViT, trained here on scikit-learn's digits, pruned by the presets and by our reading of CORP.

1297 images to train on (and to calibrate on), 500 to test on, split once. What is pruned is a checkpoint with its image
processor, on folders of PNG files, through the public interface. `corp.py` says what of CORP is done.

python benchmarks/vision.py         run everything, write results/vision.json and the table of docs/tasks.md
python benchmarks/vision.py --speed measure the speed of the first seed's models again
python benchmarks/vision.py --show  write the table from the JSON again
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import corp
from common import mean_and_spread, metrics_of, read_result, summary, write_result, write_table
from faster_pruner import CalibrationOptions, Data, prune
from faster_pruner.api.job import subject_of, usual_inputs
from faster_pruner.api.rows import calibration_rows, describe, evaluation_splits, objective_for
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.data.batches import EncodedRows
from faster_pruner.host.devices import pick_device
from faster_pruner.method.algorithm import calibrate
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.runtimes.timing import time_in_turn

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"
TEST_IMAGES, EPOCHS, BATCH, LEARNING_RATE = 500, 60, 64, 1e-3
# A calibration set that differs from seed to seed: some of the 1297 training images.
CALIBRATION_ROWS = 1024
DENSE, TURNS = ("dense", 1.0), 100
# 0.6, 0.4 and 0.25 are about where CORP ends up.
PRESET_BUDGETS = {"default": (0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.1), "kwon2022": (0.7, 0.5, 0.3, 0.2, 0.1)}
# Shares of neurons and of heads, or of query and key dimensions, that CORP keeps in every layer.
CORP: dict[str, Callable[[Calibrated, float], corp.Result]] = {
    "CORP, heads and neurons": corp.pruned_units,
    "CORP, query-key dimensions and neurons": corp.pruned_logits,
}
CORP_SHARES = (0.5, 0.25)
DIGITS = {i: str(i) for i in range(10)}
SIZES = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 256}


def save_images(folder: Path) -> dict[str, tuple[list[Image.Image], list[int]]]:
    """The digits as <folder>/{train,validation}/<digit>/<number>.png; also as they are."""
    digits: Any = load_digits()
    parts = train_test_split(
        digits.images, digits.target, test_size=TEST_IMAGES, random_state=0, stratify=digits.target
    )
    splits: dict[str, tuple[list[Image.Image], list[int]]] = {}
    for split, pixels, labels in (("train", parts[0], parts[2]), ("validation", parts[1], parts[3])):
        images = [Image.fromarray((each * (255 / 16)).round().astype(np.uint8)).convert("RGB") for each in pixels]
        splits[split] = images, [int(label) for label in labels]
        for number, (image, label) in enumerate(zip(*splits[split], strict=True)):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{number:04}.png")
    return splits


def train(folder: Path, images: list[Image.Image], labels: list[int]) -> None:
    """A ViT with its image processor, from scratch: AdamW, one cycle of the learning rate, nothing else."""
    torch.manual_seed(0)
    config = ViTConfig(
        **SIZES, image_size=16, patch_size=4, id2label=DIGITS, label2id={name: i for i, name in DIGITS.items()}
    )
    model = ViTForImageClassification(config)
    with quiet_transformers():
        processor = ViTImageProcessor(size={"height": 16, "width": 16})
    pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    targets = torch.tensor(labels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            loss = model(pixel_values=pixels[chosen], labels=targets[chosen]).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: last loss {loss.item():.4f}", flush=True)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


class Runs:
    """Figures of every run, by method and share, and the first model of each, to be timed at the end."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
        self.models: dict[tuple[str, float], nn.Module] = {}

    def add(self, name: str, share: float, figures: dict[str, float], model: nn.Module | None) -> None:
        """One more."""
        self.found[name, share].append(figures)
        if model is not None:
            self.models.setdefault((name, share), model)
        print(name, share, {key: round(x, 3) for key, x in figures.items()}, flush=True)

    def table(self, dense: nn.Module, inputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Means, spreads and speeds."""
        speeds = self.speeds(dense, inputs)
        return [
            {"method": key[0], "share": key[1], "speed_up": speeds.get(key), **summary(runs)}
            for key, runs in self.found.items()
        ]

    def speeds(self, dense: nn.Module, inputs: dict[str, Tensor]) -> dict[tuple[str, float], float]:
        """Median over the turns of the dense model's time / this one's; every turn times all models."""
        calls = {key: functools.partial(model, **inputs) for key, model in {DENSE: dense, **self.models}.items()}
        with torch.no_grad():
            seconds = time_in_turn(calls, torch.device("cpu"), warm_up=2, fewest=TURNS, most=TURNS)
        return {
            key: statistics.median(slow / fast for slow, fast in zip(seconds[DENSE], own, strict=True))
            for key, own in seconds.items()
            if key != DENSE
        }


def prune_by_presets(runs: Runs, model: Path, data: Data, seeds: list[int]) -> None:
    """The presets, through the public interface."""
    for seed in seeds:
        options = CalibrationOptions(rows=CALIBRATION_ROWS, seed=seed)
        for name, budgets in PRESET_BUDGETS.items():
            for share in budgets:
                result = prune(model, data, macs=share, method=name, calibration=options)
                figures = {**result.report.after["validation"].metrics, "macs_kept": result.report.macs_kept}
                runs.add(name, share, figures, result.model)


def prune_by_corp(runs: Runs, opened: Opened, data: Data, test: EncodedRows, seeds: list[int]) -> None:
    """CORP, on the same calibration sets."""
    task = describe(data)
    subject = subject_of(opened, objective_for(opened, task))
    for seed in seeds:
        options = CalibrationOptions(rows=CALIBRATION_ROWS, seed=seed)
        rows = calibration_rows(data.source(task), task, opened, options, labelled=False)
        calibrated = calibrate(subject, rows, corp.METHOD, options)
        for name, pruned_by in CORP.items():
            for share in CORP_SHARES:
                pruned = pruned_by(calibrated, share)
                figures = {**metrics_of(pruned.model, subject, test), "macs_kept": pruned.macs_kept}
                runs.add(name, share, figures, pruned.model if pruned.smaller else None)


def run(seeds: list[int]) -> dict[str, Any]:
    """Train, prune, evaluate, time."""
    runs = Runs()
    with tempfile.TemporaryDirectory() as place:
        model, images = Path(place, "model"), Path(place, "images")
        splits = save_images(images)
        train(model, *splits["train"])
        data = Data(task="image-classification", folder=images)
        opened, task = open_checkpoint(str(model), device=pick_device(None)), describe(data)
        test = evaluation_splits(data.source(task), task, opened, 128)["validation"]
        dense = metrics_of(opened.model, subject_of(opened, objective_for(opened, task)), test)
        print("dense", dense, flush=True)
        prune_by_corp(runs, opened, data, test, seeds)
        prune_by_presets(runs, model, data, seeds)
        table = runs.table(opened.model, usual_inputs(opened, test)[-1])
    return {"task": "digits", "train": len(splits["train"][0]), "test": len(test), "dense": dense, "table": table}


def as_table(found: dict[str, Any]) -> list[str]:
    """The table of docs/tasks.md."""
    lines = [
        "| method | MACs kept | test accuracy | test loss | speed-up at 32 images |",
        "|---|---|---|---|---|",
        f"| dense | 1 | {found['dense']['accuracy']:.2f} | {found['dense']['loss']:.3f} | 1 |",
    ]
    for row in sorted(found["table"], key=lambda row: -row["mean"]["macs_kept"]):
        speed = "" if row["speed_up"] is None else f"{row['speed_up']:.2f}x"
        loss = f"{row['mean']['loss']:.3f} ± {row['spread']['loss']:.3f}"
        cells = [row["method"], f"{row['mean']['macs_kept']:.2f}", mean_and_spread(row, "accuracy"), loss, speed]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    if arguments.speed:
        speeds = {(row["method"], row["share"]): row["speed_up"] for row in run([0])["table"]}
        found = read_result("vision")
        table = [{**row, "speed_up": speeds[row["method"], row["share"]]} for row in found["table"]]
        write_result("vision", {**found, "table": table})
    elif not arguments.show:
        write_result("vision", run([int(seed) for seed in arguments.seeds.split(",")]))
    lines = as_table(read_result("vision"))
    print("\n".join(lines))
    write_table(PAGE, "vision", lines)


if __name__ == "__main__":
    main()
