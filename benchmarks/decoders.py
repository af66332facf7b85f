"""Prune a decoder by this package and by others' methods: same calibration tokens, evaluation tokens and MACs.

Nothing is retrained. Of every model: perplexity in blocks, the rise of its logarithm over the dense model's, the share
of MACs (FlopCounterMode over the layers) and of parameters beside the embeddings, what pruning took in time and memory.
Methods: this package's default; with least squares alone every allocation, and without the curvature of the loss (G =
I); an
OSSCAR-like one (Meng et al. 2024, arXiv 2403.12983: layer-wise reconstruction; here our elimination and least squares
with G = I, one size for all layers, nothing aligned); those of `decoder_baselines.py`; torch-pruning, where it is
installed (`decoder_torch_pruning.py`).

Text comes as rows (`--data`: train and validation, texts are encoded one by one) or as whole files (`--text`: lines are
joined by empty ones and encoded together, as the literature does it with WikiText-2; without `--eval-text` the last
tenth judges). Both are cut into blocks of `--seq`; calibration blocks are drawn by the seed.

Each method and seed (those of this package that share a calibration together) runs in a process of its own, so that its
memory can be told: what it holds at most beside the dense model, until the first budget is cut. Time is that of the
calibration and the cut: processor time on a CPU (run it with one thread), elapsed time on a GPU. What the JSON has
already is not computed again.

python benchmarks/decoders.py                  the small Llama: results/decoders.json and the table
python benchmarks/decoders.py MODEL --text train.txt --eval-text test.txt --seq 2048 --tokens 262144 --device cuda
python benchmarks/decoders.py --show           write the table of docs/decoders.md from the JSON again
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import SHARED, read_result, write_result, write_table
from decoder_baselines import BASELINES
from decoder_torch_pruning import loss_gradients
from decoder_torch_pruning import pruned as pruned_by_torch_pruning
from decoders_page import table
from faster_pruner.api.job import subject_of
from faster_pruner.api.rows import describe, encoded, objective_for
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.checkpoint.saving import round_weights
from faster_pruner.costs.budget import Budget
from faster_pruner.costs.cost import Macs, total
from faster_pruner.data.batches import EncodedRows, pack, rows_of
from faster_pruner.data.sources import TRAIN_SPLITS, load_split
from faster_pruner.data.tasks import Data
from faster_pruner.errors import BudgetError
from faster_pruner.host.devices import pick_device
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.method.selecting import loss_curves
from faster_pruner.model.network import Network
from faster_pruner.model.passes import PassSetting, inference
from faster_pruner.model.precision import choose_precision
from faster_pruner.objectives.evaluation import evaluate, predict_rows
from faster_pruner.options import PRESETS, AllocationName, CalibrationOptions, Method, Rounds, SecondOrder, Weights

PAGE = Path(__file__).parents[1] / "docs" / "decoders.md"
MODEL = "pylm-llama"
TOKENS_PER_BATCH = 4096
# One part in so many of a single file judges.
HELD_BACK = 10
DEFAULT = PRESETS["default"]
SELECTION = DEFAULT.selection
assert isinstance(SELECTION, SecondOrder)
assert isinstance(DEFAULT.recovery, Weights)
LEAST_SQUARES = replace(DEFAULT, recovery=replace(DEFAULT.recovery, descent=None))
FLAT = replace(LEAST_SQUARES, selection=replace(SELECTION, curvature=False))
OSSCAR = replace(FLAT, recovery=replace(DEFAULT.recovery, align=None, descent=None), rounds=Rounds())
OURS: dict[str, tuple[Method, AllocationName]] = {
    "ours": (DEFAULT, "free"),
    "ours, least squares alone": (LEAST_SQUARES, "free"),
    "ours, one size for all layers": (LEAST_SQUARES, "uniform"),
    "ours, stock sizes": (DEFAULT, "stock"),
    "ours, G = I": (FLAT, "free"),
    "OSSCAR-like": (OSSCAR, "uniform"),
}
MAGNITUDE, TAYLOR = "torch-pruning, magnitude", "torch-pruning, Taylor"
METHODS = (*OURS, *BASELINES, MAGNITUDE, TAYLOR)
# Methods that share a calibration, and so a process; each of the others has its own.
SHARING = tuple(name for name, (method, _) in OURS.items() if method.align is not None)


@dataclass(frozen=True)
class Bench:
    """A dense model and its blocks.

    Attributes:
        opened: the checkpoint.
        subject: as something to prune.
        train: all blocks to calibrate on.
        judges: blocks that are evaluated on.
        arguments: of the command line.
    """

    opened: Opened
    subject: Subject
    train: EncodedRows
    judges: EncodedRows
    arguments: argparse.Namespace

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return pick_device(self.arguments.device)

    def blocks(self, seed: int) -> EncodedRows:
        """The calibration set of a seed: blocks drawn without replacement."""
        return drawn(self.train, self.arguments.tokens // self.arguments.seq, seed)

    def options(self, seed: int) -> CalibrationOptions:
        """How passes are run."""
        return CalibrationOptions(seed=seed, precision=self.arguments.precision, tokens_per_batch=TOKENS_PER_BATCH)

    def loss(self, model: nn.Module) -> float:
        """Mean loss of a token, in nats."""
        predicted = predict_rows(model, self.subject.objective, self.judges)
        return evaluate(predicted, self.subject.objective, split="", rows=len(self.judges)).metrics["loss"]


def open_bench(arguments: argparse.Namespace) -> Bench:
    """The model and its text. Raises InputError."""
    place = folder_of(arguments.model)
    opened = open_checkpoint(place, device=pick_device(arguments.device))
    data = Data(folder=arguments.data or (None if arguments.text else place), task="language-modeling")
    if arguments.text:
        data = Data(file=arguments.text, task="language-modeling")
    task = describe(data)
    if arguments.text:
        train = in_blocks(opened, whole_text(arguments.text), arguments.seq)
        if arguments.eval_text:
            judges = in_blocks(opened, whole_text(arguments.eval_text), arguments.seq)
        else:
            count = max(1, len(train) // HELD_BACK)
            judges = replace(train, tokens=train.tokens[-count:])
            train = replace(train, tokens=train.tokens[:-count])
    else:
        source = data.source(task)
        train, judges = (
            encoded(load_split(source, names), task, opened, arguments.seq)
            for names in (TRAIN_SPLITS, ("validation", "dev", "test"))
        )
    return Bench(
        opened, subject_of(opened, objective_for(opened, task)), train, spread_out(judges, arguments.blocks), arguments
    )


def folder_of(model: str) -> str:
    """A model by its path or the hub's name, or by that of a folder beside the other benchmarks' models."""
    shared = SHARED / "models" / model
    return str(shared) if shared.is_dir() and not Path(model).exists() else model


def whole_text(file: str) -> str:
    """A text file, its lines joined by empty ones."""
    return "\n\n".join(Path(file).read_text(encoding="utf-8").splitlines())


def in_blocks(opened: Opened, text: str, length: int) -> EncodedRows:
    """Blocks of a text that is encoded as one; what is left at the end is dropped."""
    tokenizer: Any = opened.processor
    ids = tokenizer(text)["input_ids"]
    blocks = [{"input_ids": ids[i : i + length]} for i in range(0, len(ids) - length + 1, length)]
    return EncodedRows(tokens=blocks, labels=None, padding={"input_ids": tokenizer.pad_token_id or 0})


def drawn(blocks: EncodedRows, count: int, seed: int) -> EncodedRows:
    """So many blocks, at least one, drawn without replacement."""
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed)).tolist()
    return rows_of(blocks, order[: max(1, count)])


def spread_out(rows: EncodedRows, most: int) -> EncodedRows:
    """At most so many blocks, at equal distances; all for 0."""
    if most == 0 or len(rows) <= most:
        return rows
    return rows_of(rows, [i * len(rows) // most for i in range(most)])


def layer_macs(bench: Bench, model: nn.Module) -> float:
    """Multiply-accumulates of the layers for one block, counted."""
    layers = re.compile(re.escape(bench.subject.sublayers[0].stack.layers) + r"\.\d+$")
    block = pack(replace(bench.judges, tokens=bench.judges.tokens[:1]), tokens_per_batch=1, device=bench.device)[0]
    own: Any = model
    before = own.config._attn_implementation
    # the products of fused attention are not counted everywhere
    own.set_attn_implementation("eager")
    try:
        with inference(model), FlopCounterMode(display=False) as counter:
            model(**block.inputs)
    finally:
        own.set_attn_implementation(before)
    counts = counter.get_flop_counts()
    return sum(sum(found.values()) for name, found in counts.items() if layers.search(name)) / 2


def parameters(model: nn.Module) -> int:
    """Parameters beside the embeddings of tokens and the head over them."""
    own: Any = model
    apart = {id(m.weight) for m in (own.get_input_embeddings(), own.get_output_embeddings()) if m is not None}
    return sum(p.numel() for p in model.parameters() if id(p) not in apart)


class Meter:
    """Time and peak memory beside what there was, from its making on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self._held(peak=False)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")

    def seconds(self) -> float:
        """Processor time on a CPU, elapsed time elsewhere."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak_mb(self) -> float:
        """Megabytes; nan where nobody knows."""
        return (self._held(peak=True) - self.start) / 1024**2

    def _held(self, *, peak: bool) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) if peak else torch.cuda.memory_allocated(self.device)
        if sys.platform != "linux":
            return math.nan
        found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", Path("/proc/self/status").read_text())
        return math.nan if found is None else int(found[1]) * 1024.0


# A budget -> a pruned model.
Cutter = Callable[[float], nn.Module]


def ours(bench: Bench, seed: int) -> Callable[[str], Cutter]:
    """This package: methods with one calibration share it."""
    taken: dict[bool, Calibrated] = {}

    def prepared(name: str) -> Cutter:
        method, allocation = OURS[name]
        aligned = method.align is not None
        if aligned not in taken:
            taken[aligned] = calibrate(bench.subject, bench.blocks(seed), method, bench.options(seed))
        if isinstance(method.selection, SecondOrder):
            loss_curves(taken[aligned], method.selection)
        return lambda share: cut(taken[aligned], Budget(macs=share, allocation=allocation), method).model

    return prepared


def others(bench: Bench, seed: int) -> Callable[[str], Cutter]:
    """Other methods."""
    dense = Network(bench.subject.model, bench.subject.sublayers)
    batches = pack(bench.blocks(seed), tokens_per_batch=TOKENS_PER_BATCH, device=bench.device)
    lengths = {s.stack.name: float(bench.arguments.seq) for s in dense.sublayers}
    setting = PassSetting(precision=choose_precision(bench.arguments.precision, bench.device))
    data = CalibrationSet(batches, lengths, seed, setting)
    whole = total(Macs(lengths), dense.sublayers)

    def prepared(name: str) -> Cutter:
        if name in (MAGNITUDE, TAYLOR):
            gradients = loss_gradients(dense, data) if name == TAYLOR else None
            return lambda share: pruned_by_torch_pruning(dense, data, share * whole, gradients)
        prune = BASELINES[name](dense, data)
        return lambda share: prune(share * whole).model

    return prepared


def measured(bench: Bench, model: nn.Module) -> dict[str, float]:
    """What dense and pruned models are compared by."""
    return {"loss": bench.loss(model), "macs": layer_macs(bench, model), "parameters": parameters(model)}


def runs_of(bench: Bench, names: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """Every budget by methods that share a calibration, which counts for each of them."""
    # first of all: memory that an evaluation has given back may still be the process's
    meter = Meter(bench.device)
    prepare = (ours if names[0] in OURS else others)(bench, seed)
    dense: dict[str, float] = {}
    calibration, memory = math.nan, math.nan
    for place, name in enumerate(names):
        begun = meter.seconds()
        prune = prepare(name)
        shared = meter.seconds() - begun + (calibration if place else 0.0)
        calibration = shared if place == 0 else calibration
        for share in map(float, bench.arguments.budgets.split(",")):
            begun = meter.seconds()
            try:
                model = prune(share)
            except BudgetError as error:
                print(f"{name} at {share}: {error}", flush=True)
                continue
            seconds = shared + meter.seconds() - begun
            memory = meter.peak_mb() if math.isnan(memory) else memory
            dense = dense or measured(bench, bench.subject.model)
            round_weights(model, bench.opened.dtype)
            found = measured(bench, model)
            figures = {
                "dense": math.exp(dense["loss"]),
                "perplexity": math.exp(found["loss"]),
                "rise": found["loss"] - dense["loss"],
                "macs_kept": found["macs"] / dense["macs"],
                "parameters_kept": found["parameters"] / dense["parameters"],
                "seconds": seconds,
                "memory_mb": memory,
            }
            yield {"method": name, "macs": share, "seed": seed, **figures}


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """What runs must have in common to stand in one table."""
    found = {key: getattr(arguments, key) for key in ("seq", "tokens", "blocks", "precision")}
    texts = [Path(each).name for each in (arguments.data, arguments.text, arguments.eval_text) if each]
    return {"model": Path(arguments.model).name, "texts": texts, "device": arguments.device or "auto", **found}


def run(arguments: argparse.Namespace) -> None:
    """Every method and seed that is not there yet, each in a process of its own."""
    own, before = about(arguments), read_result(arguments.name)
    done: list[dict[str, Any]] = before["runs"] if before is not None and before["about"] == own else []
    wanted = set(map(float, arguments.budgets.split(",")))
    names = arguments.methods.split(";")
    groups = [[name for name in names if name in SHARING], *([name] for name in names if name not in SHARING)]
    for seed in map(int, arguments.seeds.split(",")):
        for group in groups:
            there = {(found["method"], found["macs"]) for found in done if found["seed"] == seed}
            missing = [name for name in group if not {(name, share) for share in wanted} <= there]
            if not missing:
                continue
            done = [found for found in done if found["seed"] != seed or found["method"] not in missing]
            command = [sys.executable, *sys.argv, "--one", ";".join(missing), "--seeds", str(seed)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                for line in child.stdout:
                    print(line, end="", flush=True)
                    if line.startswith("{"):
                        done.append(json.loads(line))
            write_result(arguments.name, {"about": own, "runs": done})


def _installed() -> list[str]:
    """All methods whose packages are there."""
    there = importlib.util.find_spec("torch_pruning") is not None
    return [name for name in METHODS if there or name not in (MAGNITUDE, TAYLOR)]


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("--data", help="folder of train and validation rows; by default the model's own folder")
    parser.add_argument("--text", help="a text file in place of it")
    parser.add_argument("--eval-text", help="a text file to judge by")
    parser.add_argument("--seq", type=int, default=256, help="tokens of a block")
    parser.add_argument("--tokens", type=int, default=131072, help="to calibrate on")
    parser.add_argument("--blocks", type=int, default=96, help="to evaluate on; 0 for all")
    parser.add_argument("--budgets", default="0.9,0.8,0.75,0.7,0.5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=";".join(_installed()), help="separated by semicolons")
    parser.add_argument("--device")
    parser.add_argument("--precision", default="auto", help="of forwards and backwards: auto, float32, bfloat16")
    parser.add_argument("--name", default="decoders", help="of the JSON in results/")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--show", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run, or be one of the processes that are run, or show."""
    arguments = read_arguments()
    if arguments.one:
        bench = open_bench(arguments)
        for found in runs_of(bench, arguments.one.split(";"), int(arguments.seeds)):
            print(json.dumps(found), flush=True)
        return
    if not arguments.show:
        run(arguments)
    lines = table(read_result(arguments.name), METHODS)
    print("\n".join(lines))
    if arguments.name == "decoders":
        write_table(PAGE, "decoders", lines)


if __name__ == "__main__":
    main()
