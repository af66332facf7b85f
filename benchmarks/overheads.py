"""Budgets in time against budgets in MACs of the same time, on a made-up machine: every sublayer takes a share of its
time whatever its size, the rest in proportion to its units.

Of each budget: the divergence from the dense model on held-out training rows, and accuracy. Time is limited as the
package does it, and without the rounds and the descent that belong to budgets which leave few MACs.

python benchmarks/overheads.py        results/overheads.json (it stands in docs/decisions.md)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from common import calibration_rows, metrics_of, open_model, rows_of, subject_for, write_result
from faster_pruner.costs.budget import Budget, Limit
from faster_pruner.costs.cost import Macs, total
from faster_pruner.data.batches import part_of
from faster_pruner.errors import BudgetError
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.method.selecting import bounds_for, select, sizes_allowed
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.evaluation import predict_rows
from faster_pruner.options import PRESETS, CalibrationOptions, Rounds, Weights

METHOD = PRESETS["default"]
assert isinstance(METHOD.recovery, Weights)
MILD = replace(METHOD, rounds=Rounds(), recovery=replace(METHOD.recovery, descent=None))
# Share of a sublayer's time that does not depend on its size, and shares of the dense model's time to keep.
CASES = ((0.2, 0.33), (0.4, 0.5), (0.4, 0.33))


@dataclass(frozen=True)
class Time:
    """What sublayers take.

    Attributes:
        overhead: share that does not depend on the size.
        units: of the dense model's sublayers, by name.
    """

    overhead: float
    units: dict[str, int]
    name: str = "time"

    def of(self, sublayer: Sublayer, keeps: Tensor) -> Tensor:
        """[P] float64."""
        grown = (1 - self.overhead) * keeps.double() / self.units[sublayer.name]
        return (keeps > 0).double() * self.overhead + grown

    def fixed(self, model: nn.Module, sublayers: Any) -> float:
        """Nothing else takes time."""
        del model, sublayers
        return 0.0


def macs_of_time(calibrated: Calibrated, time: Time, share: float) -> float:
    """The share of the MACs whose budget takes this share of the time, by bisection."""
    whole, low, high = total(time, calibrated.sublayers), 0.02, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        budget = Budget(macs=middle)
        sizes = sizes_allowed(calibrated.sublayers, budget, METHOD)
        try:
            kept = select(calibrated, METHOD, bounds_for(calibrated, budget), sizes)
        except BudgetError:
            low = middle
            continue
        took = sum(float(time.of(s, torch.tensor([kept[s.name].numel()]))[0]) for s in calibrated.sublayers)
        low, high = (low, middle) if took > share * whole else (middle, high)
    return low


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sst2")
    arguments = parser.parse_args()
    opened = open_model(arguments.task)
    rows = calibration_rows(opened, arguments.task, 4096, 0, labelled=False)
    held, dev = part_of(rows, 2048, len(rows)), rows_of(opened, arguments.task, ("validation",))
    subject = subject_for(opened, arguments.task)
    calibrated = calibrate(subject, part_of(rows, 0, 2048), METHOD, CalibrationOptions())
    aim = torch.tensor(predict_rows(subject.model, subject.objective, held).values).log_softmax(dim=-1)
    macs = Macs(calibrated.data.lengths)
    found: list[dict[str, Any]] = []
    for overhead, share in CASES:
        time = Time(overhead, {s.name: s.units for s in calibrated.sublayers})
        limited = Budget(limits=(Limit(cost=time, share=share),))
        same = Budget(macs=macs_of_time(calibrated, time, share))
        for what, budget, method in (("time", limited, METHOD), ("time, mild", limited, MILD), ("macs", same, METHOD)):
            pruned = cut(calibrated, budget, method)
            said = torch.tensor(predict_rows(pruned.model, subject.objective, held).values).log_softmax(dim=-1)
            record = {
                "overhead": overhead,
                "share": share,
                "budget": what,
                "divergence": float((aim.exp() * (aim - said)).sum(dim=-1).mean()),
                "accuracy": metrics_of(pruned.model, subject, dev)["accuracy"],
                "macs_kept": total(macs, pruned.sublayers) / total(macs, calibrated.sublayers),
                "time_kept": total(time, pruned.sublayers) / total(time, calibrated.sublayers),
            }
            found.append(record)
            print(record, flush=True)
    write_result("overheads", found)


if __name__ == "__main__":
    main()
