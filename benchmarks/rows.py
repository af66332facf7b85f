"""How many calibration rows the recovery can use: residuals on held-out rows against the rows that a fit has seen.

Every output projection of a pruned model is fitted on the first 256, 512, ... rows; what is reported is the relative
error of each of these fits on training rows outside of all of them. The model then goes on with the fit of all rows, so
that all fits of a sublayer are given the same inputs.

python benchmarks/rows.py --tasks sst2,mrpc,cola        results/rows.json and the table of docs/distillation.md
python benchmarks/rows.py --show                        the table from the JSON
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import read_result, write_result, write_table
from distillation_page import PAGE, TITLES
from faster_pruner.costs.budget import Budget
from faster_pruner.linalg import RegressionMoments, solve_or_fall_back
from faster_pruner.method import algorithm, recovery
from faster_pruner.method.recovery import recover
from faster_pruner.method.statistics import tokens_of
from faster_pruner.model.lockstep import Lockstep
from faster_pruner.model.spec import Sublayer, bias_of
from faster_pruner.options import CalibrationOptions, Weights
from heads import cache_folder
from strong import DEFAULT, ROWS, Case, open_case, replaced

NAME = "rows"
BUDGETS = {"sst2": 0.1, "mrpc": 0.2, "cola": 0.2}
FEWEST = 256
# A doubling pays where it takes so much of a residual away.
PAYS = 0.02


class Fits:
    """Fits each sublayer several times, and judges every fit on the rows behind the last of them."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts, self.found = list(counts), dict[str, list[float]]()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def gather(self, run: Lockstep, targets: Any, sublayer: Sublayer, tokens: Sequence[Tensor], **_: Any) -> Any:
        """As `recovery._gather`: the moments of all rows but those that judge; tokens are kept with their rows."""
        self.seen = []
        for arrival, target in zip(run.arrivals(sublayer), targets.of(sublayer, tokens), strict=True):
            chosen = tokens[arrival.batch]
            assert arrival.base is not None
            rows = run._batches[arrival.batch].rows[:, None].expand_as(chosen)[chosen]
            self.seen.append((rows, tokens_of(arrival.x, chosen), target - tokens_of(arrival.base, chosen)))
        return self.moments(0, self.counts[-1])

    def moments(self, start: int, stop: int) -> RegressionMoments:
        """Of the tokens of some rows."""
        _, x, r = self.seen[0]
        found = RegressionMoments(x.shape[1], r.shape[1], x.device)
        for rows, x, r in self.seen:
            own = (rows >= start) & (rows < stop)
            found.add(x[own], r[own])
        return found

    def fit(self, model: Any, sublayer: Sublayer, moments: Any, options: Weights) -> Any:
        """As `recovery._reconstruct`, after the fits that are judged."""
        held_out = self.moments(self.counts[-1], 1 << 62)
        own = sublayer.weight(model).detach()
        biased = bias_of(sublayer.projection(model)) is not None
        self.found[sublayer.name] = []
        for count in self.counts:
            part = self.moments(0, count)
            matrix, right_side = part.normal_equations(intercept=biased)
            weight = solve_or_fall_back(options.solver, matrix, right_side, own.T.double())[0].value.T
            error = held_out.error(weight, part.intercept(weight) if biased else None)
            self.found[sublayer.name].append(error)
        return original(model, sublayer, moments, options)


original = recovery._reconstruct


def residuals(case: Case, macs: float) -> dict[str, Any]:
    """The residuals of one model."""
    counts = [FEWEST]
    while counts[-1] < ROWS[case.task][1]:
        counts.append(min(2 * counts[-1], ROWS[case.task][1]))
    network, _ = case.student("default", DEFAULT, Budget(macs=macs))
    batches = [batch for part in case.parts for batch in part]
    # behind all others
    batches += [replace(batch, rows=batch.rows + counts[-1]) for batch in case.held_out]
    whole = algorithm.calibrate(case.subject, batches, DEFAULT, CalibrationOptions(seed=case.seed))
    fits = Fits(counts)
    with replaced(recovery, _gather=fits.gather, _reconstruct=fits.fit):
        recover(network, whole.data, whole.statistics, method=DEFAULT)
    return {"task": case.task, "seed": case.seed, "macs": macs, "rows": counts, "residuals": fits.found}


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """A row per task and number of rows."""
    lines = ["| task, MACs kept | rows | held-out residual | gone by more rows | sublayers where that is over 2 % |"]
    lines.append("|---" * 5 + "|")
    for task, macs in dict.fromkeys((r["task"], r["macs"]) for r in records):
        own = [r for r in records if (r["task"], r["macs"]) == (task, macs)]
        for place, rows in enumerate(own[0]["rows"]):
            each = [values for r in own for values in r["residuals"].values()]
            cells = [f"{TITLES[task]}, {macs:g}", str(rows), f"{statistics.mean(v[place] for v in each):.3f}"]
            gains = [1 - v[place] / v[place - 1] for v in each] if place else []
            cells += (
                [f"{statistics.mean(gains):.1%}", f"{sum(g > PAYS for g in gains)} of {len(gains)}"]
                if place
                else ["", ""]
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(BUDGETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--heads", type=Path, default=cache_folder(), help="folder of the checkpoints of heads.py")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = read_result(NAME) or []
    if not arguments.show:
        for task in arguments.tasks.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                found = residuals(open_case(task, seed, arguments.heads, more=True), BUDGETS[task])
                print(found, flush=True)
                records = [r for r in records if (r["task"], r["seed"]) != (task, seed)] + [found]
                write_result(NAME, records)
    lines = table(records)
    print("\n".join(lines))
    write_table(PAGE, NAME, lines)


if __name__ == "__main__":
    main()
