"""Distillation after the recovery: what to match, on how many rows, and what it gains for its cost.

python benchmarks/distillation.py recipe       what is trained, towards what, how fast: SST-2 at .1, one at a time
python benchmarks/distillation.py gain         SST-2, MRPC and CoLA: budgets and seeds, with and without
python benchmarks/distillation.py embedding    all-MiniLM-L6-v2 on unlabelled sentences
python benchmarks/distillation.py cost         accuracy against the cost of the whole run, SST-2 at .1
python benchmarks/distillation.py show         docs/distillation.md and its plot from the JSON

Rows that judge are training rows outside the calibration set and never trained on; validation rows are only reported.
CoLA's classifier is that of benchmarks/heads.py. Parts keep what the JSON has of the others.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common import ROWS, SHARED, metrics_of, read_result, write_result
from cost import forward_backward
from embeddings import calibration_texts, opened_bench
from faster_pruner.api.distilling import cost_in_fb
from faster_pruner.api.job import subject_of
from faster_pruner.api.rows import calibration_rows, evaluation_splits, objective_for, unlabelled_rows
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.checkpoint.saving import round_weights
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import Batch, EncodedRows, part_of
from faster_pruner.data.glue import GLUE
from faster_pruner.data.tasks import Data
from faster_pruner.host.devices import pick_device
from faster_pruner.method import distillation
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Pruned, Subject
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.method.distillation import distil
from faster_pruner.method.lesson import Lesson, Unlabelled, first_of
from faster_pruner.model.passes import inference
from faster_pruner.model.precision import forward_in
from faster_pruner.options import PRESETS, CalibrationOptions, Distillation, Switches, customise
from heads import cache_folder, head_of

NAME = "distillation"
PARTS = ("recipe", "gain", "embedding", "cost")
# Calibration rows; of the small tasks some rows must be left.
CALIBRATION = {"sst2": ROWS["sst2"], "mrpc": 1024, "cola": 2048}
BUDGETS = {"sst2": (0.5, 0.3, 0.2, 0.1), "mrpc": (0.5, 0.3, 0.2), "cola": (0.5, 0.3, 0.1)}
DISTILLED = 16384


@dataclass(frozen=True, kw_only=True)
class Case:
    """One calibrated model with its rows.

    Attributes:
        task: a GLUE task.
        calibration: its rows.
        opened: the dense checkpoint.
        calibrated: its statistics.
        validation: rows that are only reported.
        unlabelled: rows to distil on, and those that judge.
        seed: of everything.
    """

    task: str
    calibration: EncodedRows
    opened: Opened
    calibrated: Calibrated
    validation: EncodedRows
    unlabelled: Unlabelled
    seed: int

    @property
    def subject(self) -> Subject:
        """The dense model."""
        return self.calibrated.subject

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """On the validation rows."""
        return metrics_of(model, self.subject, self.validation)

    def first(self, count: int) -> Unlabelled:
        """Fewer rows to distil on."""
        return replace(self.unlabelled, rows=first_of(self.unlabelled.rows, count))


def checkpoint(task: str, heads: Path | None) -> Path:
    """The dense classifier of a task."""
    place = SHARED / "models" / f"minilm-l6-{task}"
    return place if place.is_dir() else head_of(task, (heads or cache_folder()) / task)


def case(task: str, seed: int, *, heads: Path | None, rows: int = DISTILLED) -> Case:
    """Open, calibrate and draw."""
    opened = open_checkpoint(str(checkpoint(task, heads)), device=pick_device(None))
    described = GLUE[task]
    source = Data(folder=SHARED / "data" / "glue").source(described)
    options = CalibrationOptions(rows=CALIBRATION[task], seed=seed)
    subject = subject_of(opened, objective_for(opened, described))
    drawn = calibration_rows(source, described, opened, options, labelled=False)
    return Case(
        task=task,
        calibration=drawn,
        opened=opened,
        calibrated=calibrate(subject, drawn, PRESETS["default"], options),
        validation=evaluation_splits(source, described, opened, 128)["validation"],
        unlabelled=unlabelled_rows(source, described, opened, options, Distillation(rows=rows)),
        seed=seed,
    )


def measured(own: Case, pruned: Pruned, lesson: Lesson, unlabelled: Unlabelled) -> dict[str, Any]:
    """Distil a copy, and judge it."""
    student = lesson.student
    # of the processor: what else the machine does counts for little
    started = time.process_time()
    found = distil(lesson, unlabelled)
    seconds = time.process_time() - started
    round_weights(student, own.subject.dtype)
    return {
        "held_out_before": found.before,
        "held_out": found.after,
        "history": found.history,
        "steps": found.steps,
        "best_step": found.best_step,
        "rows": found.rows,
        "fb": cost_in_fb(own.calibrated, pruned, found, lesson.how),
        "seconds": seconds,
        "validation": own.metrics(student),
    }


@dataclass(frozen=True, kw_only=True)
class Matching(Lesson):
    """A lesson that matches hidden states, too, each part divided by its size before the first step.

    Attributes:
        parts: of "predictions", "last" (the states that the head reads), "streams" (those between the layers).
        sizes: of the parts, found on the first batch.
    """

    parts: tuple[str, ...]
    sizes: dict[str, float]

    def losses(self, model: nn.Module, batch: Batch, aim: tuple[Tensor, list[Tensor]]) -> dict[str, Tensor]:
        """Each part of the loss."""
        values, states = self.both(model, batch)
        found = {"predictions": self.objective.likelihood.divergence(values, aim[0]).mean()}
        assert batch.mask is not None
        real = batch.mask[..., None].float()
        gaps = [
            ((a - b.float()).square() * real).sum() / (b.float().square() * real).sum()
            for a, b in zip(states, aim[1], strict=True)
        ]
        found["streams"] = torch.stack(gaps[:-1]).mean()
        found["last"] = gaps[-1]
        return found

    def both(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Predictions, and the hidden states after every layer."""
        with forward_in(self.setting.precision, batch.rows.device):
            returned = model(**batch.inputs, output_hidden_states=True)
        return self.objective.values(returned, batch).float(), [h.float() for h in returned.hidden_states[1:]]

    def loss(self, model: nn.Module, batch: Batch, aim: Any) -> Tensor:
        """Of held-out rows the predictions alone: what all variants are judged by."""
        if not isinstance(aim, tuple):
            return super().loss(model, batch, aim)
        found = self.losses(model, batch, aim)
        for name, part in found.items():
            self.sizes.setdefault(name, max(float(part.detach()), 1e-9))
        return torch.stack([found[name] / self.sizes[name] for name in self.parts]).sum()

    def aims(self, batches: Sequence[Batch]) -> Any:
        """Predictions of the few rows that judge; of those that are trained on hidden states, too."""
        if not self.sizes.get("judged"):
            # they are asked for first
            self.sizes["judged"] = 1.0
            return super().aims(batches)
        found: list[Any] = []
        with inference(self.teacher):
            for batch in batches:
                values, states = self.both(self.teacher, batch)
                found.append((self.objective.likelihood.kept(values), [h.bfloat16() for h in states]))
        return found


Chosen = Callable[[str], bool]


@contextmanager
def trained_only(chosen: Chosen) -> Generator[None]:
    """Only the parameters of some names are trained."""
    original = distillation.training

    @contextmanager
    def some(model: nn.Module) -> Generator[list[nn.Parameter]]:
        with original(model):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(chosen(name))
            yield [parameter for parameter in model.parameters() if parameter.requires_grad]

    distillation.training = some
    try:
        yield
    finally:
        distillation.training = original


def recipe(seeds: Sequence[int], heads: Path | None) -> Iterator[dict[str, Any]]:
    """One thing at a time, on SST-2 at a tenth of the MACs; judged on held-out rows."""
    base = Distillation(rows=DISTILLED)
    for seed in seeds:
        own = case("sst2", seed, heads=heads, rows=2 * DISTILLED)
        budget = Budget(macs=0.1)
        repaired = cut(own.calibrated, budget, PRESETS["default"])
        sliced = cut(own.calibrated, budget, customise(PRESETS["default"], Switches(recovery="none")))
        for name, how, count, match, chosen in variants(base):
            pruned = sliced if "no recovery" in name else repaired
            lesson = Lesson.of(own.calibrated, _copied(pruned), how)
            if match:
                lesson = Matching(**{**vars(lesson), "layers": ()}, parts=match, sizes={})
            only: AbstractContextManager[None] = nullcontext() if chosen is None else trained_only(chosen)
            with only:
                found = measured(own, pruned, lesson, own.first(count))
            yield {"variant": name, "seed": seed, "macs": 0.1, **found}


def _copied(pruned: Pruned) -> nn.Module:
    """Another copy of a pruned model."""
    return copy.deepcopy(pruned.model)


def variants(base: Distillation) -> Iterator[tuple[str, Distillation, int, tuple[str, ...], Chosen | None]]:
    """Name, options, rows, what is matched in place of the package's own, and which parameters are trained."""
    own: tuple[str, ...] = ()
    yield "default", base, DISTILLED, own, None
    yield "predictions alone", replace(base, match="predictions"), DISTILLED, own, None
    yield "predictions and streams", replace(base, match="predictions"), DISTILLED, ("predictions", "streams"), None
    yield "predictions and last states", replace(base, match="predictions"), DISTILLED, ("predictions", "last"), None
    yield "no recovery before it", base, DISTILLED, own, None
    yield "all but the embeddings", base, DISTILLED, own, lambda name: "embeddings" not in name
    yield "output projections alone", base, DISTILLED, own, lambda name: "output.dense" in name
    for rate in (5e-5, 2e-4, 5e-4):
        yield f"learning rate {rate:g}", replace(base, learning_rate=rate), DISTILLED, own, None
    for size in (16, 64):
        yield f"{size} rows per step", replace(base, rows_per_step=size), DISTILLED, own, None
    for rows, epochs in ((2048, 16), (4096, 8), (8192, 4)):
        yield f"{rows} rows, {epochs} epochs", replace(base, epochs=epochs), rows, own, None


def gain(seeds: Sequence[int], heads: Path | None) -> Iterator[dict[str, Any]]:
    """With and without, over tasks, budgets and seeds."""
    for seed in seeds:
        for task, budgets in BUDGETS.items():
            own = case(task, seed, heads=heads)
            yield {"task": task, "seed": seed, "macs": 1.0, "recovered": own.metrics(own.subject.model)}
            for share in budgets:
                pruned = cut(own.calibrated, Budget(macs=share), PRESETS["default"])
                stored = _copied(pruned)
                round_weights(stored, own.subject.dtype)
                recovered = own.metrics(stored)
                lesson = Lesson.of(own.calibrated, _copied(pruned), Distillation(rows=DISTILLED))
                found = measured(own, pruned, lesson, own.unlabelled)
                yield {"task": task, "seed": seed, "macs": share, "recovered": recovered, **found}


def cost(seeds: Sequence[int], heads: Path | None) -> Iterator[dict[str, Any]]:
    """What a run takes altogether, in FB (of its calibration set) measured in the same process, and what it gives."""
    for seed in seeds:
        own = case("sst2", seed, heads=heads, rows=2 * DISTILLED)
        data = own.calibrated.data
        fb = statistics.median(_one_fb(own.opened.model, data) for _ in range(3))
        for name, descent in (("least squares alone", False), ("recovery", True)):
            method = customise(PRESETS["default"], Switches(descent=descent))
            started = time.process_time()
            calibrated = calibrate(own.subject, own.calibration, method, CalibrationOptions(seed=seed))
            pruned = cut(calibrated, Budget(macs=0.1), method)
            whole = time.process_time() - started
            stored = _copied(pruned)
            round_weights(stored, own.subject.dtype)
            yield {"seed": seed, "run": name, "fb_measured": whole / fb, "validation": own.metrics(stored)}
        for count in (2048, 4096, 8192, DISTILLED, 2 * DISTILLED):
            lesson = Lesson.of(own.calibrated, _copied(pruned), Distillation(rows=count))
            found = measured(own, pruned, lesson, own.first(count))
            name = f"and {count} rows"
            yield {"seed": seed, "run": name, **found, "fb_measured": (whole + found["seconds"]) / fb}


def _one_fb(model: PreTrainedModel, data: CalibrationSet) -> float:
    """Seconds of the processor that a forward and a backward of the calibration set take."""
    started = time.process_time()
    forward_backward(model, data.batches, data.setting.precision)
    return time.process_time() - started


def embedding(seeds: Sequence[int], heads: Path | None) -> Iterator[dict[str, Any]]:
    """Neighbours and similarities of all-MiniLM-L6-v2 with and without."""
    del heads
    bench = opened_bench()
    for seed in seeds:
        texts = calibration_texts(DISTILLED + 1024, seed)
        encoded = bench.encoded(texts)
        subject = subject_of(bench.opened, bench.objective)
        options = CalibrationOptions(rows=2048, seed=seed)
        calibrated = calibrate(subject, part_of(encoded, 0, 2048), PRESETS["default"], options)
        held = part_of(encoded, 2048, 2048 + 1024)
        rest = replace(encoded, tokens=[*encoded.tokens[:2048], *encoded.tokens[3072:]], labels=None, context=None)
        for share in (0.7, 0.5, 0.3):
            pruned = cut(calibrated, Budget(macs=share), PRESETS["default"])
            recovered = bench.of(pruned.model)
            student = _copied(pruned)
            how = Distillation(rows=DISTILLED)
            found = distil(Lesson.of(calibrated, student, how), Unlabelled(rows=rest, held_out=held))
            yield {
                "seed": seed,
                "macs": share,
                "recovered": recovered,
                "distilled": bench.of(student),
                "held_out_before": found.before,
                "held_out": found.after,
                "rows": found.rows,
                "fb": cost_in_fb(calibrated, pruned, found, how),
            }


def main() -> None:
    """Run one part and keep what the others have found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "show"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--heads", type=Path, default=None, help="folder of the classifiers of benchmarks/heads.py")
    arguments = parser.parse_args()
    if arguments.part == "show":
        from distillation_page import write_page

        write_page(read_result(NAME))
        return
    measure = {"recipe": recipe, "gain": gain, "embedding": embedding, "cost": cost}[arguments.part]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    found = read_result(NAME) or {}
    kept = [record for record in found.get(arguments.part, []) if record["seed"] not in seeds]
    for record in measure(seeds, arguments.heads):
        kept.append(record)
        print({key: value for key, value in record.items() if key != "history"}, flush=True)
        write_result(NAME, {**(read_result(NAME) or {}), arguments.part: kept})


if __name__ == "__main__":
    main()
