"""What a decoder needs that an encoder did not: each idea, against least squares alone, on held-out training text.

Calibration blocks are drawn by the seed from the training text but for its last part, which judges; validation text is
never read. A row is one idea at one budget and seed: the rise of the logarithm of perplexity over the dense model's,
and its processor time (run it with one thread).

python benchmarks/decoder_ideas.py                    all: results/decoder_ideas.json and the table
python benchmarks/decoder_ideas.py --ideas "a;b"      only these
python benchmarks/decoder_ideas.py --show             write the table again
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from allocation_search import GENERATIONS, searched
from common import SHARED, mean_and_spread, read_result, summary, write_result, write_table
from decoders import LEAST_SQUARES, MODEL, SELECTION, Bench, drawn, folder_of, in_blocks, spread_out
from faster_pruner.api.job import subject_of
from faster_pruner.api.rows import describe, encoded, objective_for
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.saving import round_weights
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import EncodedRows
from faster_pruner.data.sources import TRAIN_SPLITS, load_split
from faster_pruner.data.tasks import Data
from faster_pruner.host.devices import pick_device
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.method.selecting import loss_curves
from faster_pruner.options import (
    AllocationName,
    AttentionUnit,
    Descent,
    Method,
    Rounds,
    SecondOrder,
    SolverOptions,
    Weights,
)
from whole_layers import LayerDescent, Stacks, descend_layers

NAME = "decoder_ideas"
PAGE = Path(__file__).parents[1] / "docs" / "decoders.md"
LENGTH, TOKENS, JUDGES = 128, 32_768, 384
# About so many files of another project.
FILES = 200
# Blocks that a candidate of a search over allocations is judged by.
FITNESS = 64
WEIGHTS = LEAST_SQUARES.recovery
assert isinstance(WEIGHTS, Weights)


def recovering(**changes: Any) -> Method:
    """Least squares alone with other switches of its recovery."""
    return replace(LEAST_SQUARES, recovery=replace(WEIGHTS, **changes))


def with_ridge(ridge: float) -> Method:
    """Least squares alone with another ridge."""
    return recovering(solver=SolverOptions(name="auto", ridge=ridge))


@dataclass(frozen=True)
class Idea:
    """One change.

    Attributes:
        method: in place of the default.
        tokens: to calibrate on.
        allocation: of the budget.
        text: what is calibrated on; empty for the model's own training text.
        generations: of a search over allocations (`evolved`); 0 for none.
        ends: the loss curves of the first and of the last layer times these factors: above 1 keeps more there.
        blocks: a descent of attention and feed-forward of a layer together, after the method's recovery.
    """

    method: Method = LEAST_SQUARES
    tokens: int = TOKENS
    allocation: AllocationName = "free"
    text: str = ""
    generations: int = 0
    ends: tuple[float, float] = (1.0, 1.0)
    blocks: LayerDescent | None = None


IDEAS: dict[str, Idea] = {
    "least squares alone": Idea(),
    "no reconstruction": Idea(replace(LEAST_SQUARES, recovery=None)),
    "not aligned": Idea(recovering(align=None, descent=None)),
    "alignment ridge x 10": Idea(recovering(align=1e-1)),
    "ridge / 10": Idea(with_ridge(1e-3)),
    "ridge x 10": Idea(with_ridge(1e-1)),
    "descent (the default)": Idea(recovering(descent=Descent(below=1.0))),
    "two rounds": Idea(replace(LEAST_SQUARES, rounds=Rounds(count=2, below=1.0))),
    "moments of 4 x the tokens": Idea(replace(LEAST_SQUARES, selection=replace(SELECTION, moment_tokens=32))),
    "labels (empirical Fisher)": Idea(replace(LEAST_SQUARES, labels=True)),
    "without curvature (G = I)": Idea(replace(LEAST_SQUARES, selection=replace(SELECTION, curvature=False))),
    "query heads": Idea(replace(LEAST_SQUARES, attention_unit="head")),
    "query heads, stock sizes": Idea(replace(LEAST_SQUARES, attention_unit="head"), allocation="stock"),
    "stock sizes": Idea(allocation="stock"),
    "uniform": Idea(allocation="uniform"),
    "8192 tokens": Idea(tokens=8_192),
    "131072 tokens": Idea(tokens=131_072),
    "Python of another project": Idea(text="python"),
    "English sentences": Idea(text="sst2"),
    "abstracts of medicine": Idea(text="ncbi_disease"),
    "allocation searched by loss": Idea(generations=GENERATIONS),
    "first layer x 4": Idea(ends=(4.0, 1.0)),
    "last layer x 4": Idea(ends=(1.0, 4.0)),
    "first and last layer x 4": Idea(ends=(4.0, 4.0)),
    "first and last layer / 4": Idea(ends=(0.25, 0.25)),
    "attention and feed-forward together by descent": Idea(blocks=LayerDescent(epochs=4, rate=1e-3, rows_per_step=8)),
    "the same, a third of the rate": Idea(blocks=LayerDescent(epochs=4, rate=3e-4, rows_per_step=8)),
}


def text_of(name: str, bench: Bench) -> EncodedRows:
    """Blocks of another corpus."""
    if name == "python":
        # the sources of a package that every environment has
        found = importlib.util.find_spec("transformers")
        assert found is not None
        assert found.submodule_search_locations
        files = sorted(Path(found.submodule_search_locations[0]).rglob("*.py"))
        texts = [file.read_text(encoding="utf-8") for file in files[:: max(1, len(files) // FILES)]]
    elif name == "ncbi_disease":
        with gzip.open(SHARED / "data" / "ner" / name / "train.jsonl.gz", "rt", encoding="utf-8") as stream:
            texts = [" ".join(json.loads(line)["tokens"]) for line in stream]
    else:
        data = Data(folder=SHARED / "data" / "glue" / name, task="language-modeling")
        task = replace(describe(data), text_column="sentence")
        return encoded(load_split(data.source(task), TRAIN_SPLITS), task, bench.opened, LENGTH)
    return in_blocks(bench.opened, "\n\n".join(texts), LENGTH)


def with_losses(calibrated: Calibrated, factors: Callable[[Any], float]) -> Calibrated:
    """Other losses of the sublayers than their curves say, each times a factor by the key of its curve."""
    curves = {key: replace(curve, loss=curve.loss * factors(key)) for key, curve in calibrated.curves.items()}
    return replace(calibrated, curves=curves)


def scaled_ends(calibrated: Calibrated, ends: tuple[float, float]) -> Calibrated:
    """Other losses of the first and of the last layer."""
    prefixes = list(dict.fromkeys(sublayer.prefix for sublayer in calibrated.sublayers))
    factors = dict(zip((prefixes[0], prefixes[-1]), ends, strict=True))
    own = {sublayer.name: factors.get(sublayer.prefix, 1.0) for sublayer in calibrated.sublayers}
    return with_losses(calibrated, lambda key: own[key[0]])


def evolved(calibrated: Calibrated, budget: Budget, idea: Idea, bench: Bench, seed: int) -> nn.Module:
    """A model cut to a budget: as it is, or the best of several allocations by its loss on blocks of their own.

    A candidate assumes other losses of the sublayers than their curves say, each times a factor of its own; its model
    is cut and recovered like any other (as EvoPress and Tyr search, from our curves as the start).
    """
    if idea.generations or idea.ends != (1.0, 1.0):
        assert isinstance(idea.method.selection, SecondOrder)
        loss_curves(calibrated, idea.method.selection)
        calibrated = scaled_ends(calibrated, idea.ends)
    best = cut(calibrated, budget, idea.method).model
    if idea.blocks is not None:
        dense: Any = calibrated.model
        pruned: Any = best
        stacks = Stacks(
            model=pruned,
            layers=list(pruned.model.layers),
            dense=dense,
            wanted=list(dense.model.layers),
            first_alone=False,
        )
        descend_layers(stacks, calibrated.data.batches, idea.blocks, seed)
    if not idea.generations:
        return best
    keys = list(calibrated.curves)

    def made(found: Tensor) -> nn.Module:
        factors = dict(zip(keys, found.tolist(), strict=True))
        return cut(with_losses(calibrated, factors.__getitem__), budget, idea.method).model

    return searched(best, len(keys), made=made, loss=bench.loss, seed=seed, generations=idea.generations)


def run(arguments: argparse.Namespace) -> None:
    """Every idea that is not there yet."""
    place = folder_of(arguments.model)
    opened = open_checkpoint(place, device=pick_device(arguments.device))
    data = Data(folder=place, task="language-modeling")
    task = describe(data)
    blocks = encoded(load_split(data.source(task), TRAIN_SPLITS), task, opened, LENGTH)
    count = len(blocks) // 5
    judges = spread_out(replace(blocks, tokens=blocks.tokens[-count:]), JUDGES)
    train = replace(blocks, tokens=blocks.tokens[:-count])
    subjects = {
        unit: subject_of(opened, objective_for(opened, task), cast(AttentionUnit, unit)) for unit in ("group", "head")
    }
    bench = Bench(opened, subjects["group"], train, judges, arguments)
    dense = bench.loss(opened.model)
    before = read_result(NAME)
    rows: list[dict[str, Any]] = [] if before is None else before["rows"]
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.ideas.split(";") if arguments.ideas else IDEAS:
            idea = IDEAS[name]
            wanted = [float(each) for each in arguments.budgets.split(",")]
            there = {row["macs"] for row in rows if (row["idea"], row["seed"]) == (name, seed)}
            if there >= set(wanted):
                continue
            corpus = text_of(idea.text, bench) if idea.text else train
            begun = time.process_time()
            subject = subjects[idea.method.attention_unit]
            calibrated = calibrate(
                subject, drawn(corpus, idea.tokens // LENGTH, seed), idea.method, bench.options(seed)
            )
            shared = time.process_time() - begun
            for share in wanted:
                begun = time.process_time()
                budget = Budget(macs=share, allocation=idea.allocation)
                fit = drawn(train, TOKENS // LENGTH + FITNESS, seed)
                own = replace(bench, judges=replace(fit, tokens=fit.tokens[-FITNESS:]))
                model = evolved(calibrated, budget, idea, own, seed)
                seconds = shared + time.process_time() - begun
                round_weights(model, opened.dtype)
                rise = bench.loss(model) - dense
                rows.append({"idea": name, "seed": seed, "macs": share, "rise": rise, "seconds": seconds})
                print(f"{name:28} seed {seed} macs {share}: {rise:.4f}", flush=True)
            figures = {"model": Path(arguments.model).name, "dense": math.exp(dense), "rows": rows}
            write_result(NAME, figures)


def rises(rows: list[dict[str, Any]]) -> str:
    """Mean and spread of the rises in percent, of several seeds."""
    return mean_and_spread(summary([{"rise": 100 * row["rise"]} for row in rows]), "rise") if rows else "–"


def show() -> None:
    """The table of the page."""
    found = read_result(NAME)
    assert found is not None
    rows: Sequence[dict[str, Any]] = found["rows"]
    budgets = sorted({row["macs"] for row in rows}, reverse=True)
    default = statistics.mean(row["seconds"] for row in rows if row["idea"] == "least squares alone")
    lines = ["| idea | " + " | ".join(f"{share:.0%} of the MACs" for share in budgets) + " | time |"]
    lines.append("|---|" + "---|" * (len(budgets) + 1))
    for name in IDEAS:
        own = [row for row in rows if row["idea"] == name]
        if not own:
            continue
        cells = [rises([row for row in own if row["macs"] == share]) for share in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} | {statistics.mean(r['seconds'] for r in own) / default:.1f} |")
    write_table(PAGE, NAME, lines)


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("--ideas", default="")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budgets", default="0.75,0.5")
    parser.add_argument("--show", action="store_true")
    parser.set_defaults(device=None, precision="float32")
    arguments = parser.parse_args()
    if not arguments.show:
        run(arguments)
    show()


if __name__ == "__main__":
    main()
