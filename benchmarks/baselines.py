"""Compare with other ways to choose units: equal measured MACs, same model, data and seeds, no retraining.

* random: units drawn at random, the same share of each sublayer;
* magnitude: units with the smallest weights removed, ranked over all layers, heads and neurons apart;
* torch-pruning 1.6.1: the PyPI library's group-magnitude and Taylor pruning of heads and FFN neurons, ranked inside
  each layer as in its BERT example, but for the residual stream, which stays as it is;
* torch-pruning + our recovery: its choice, our weight reconstruction;
* the presets of this package.

pip install torch-pruning && python benchmarks/baselines.py --task sst2 --budgets 0.7,0.5,0.3
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from common import (
    ROWS,
    calibration_rows,
    macs_left,
    metrics_of,
    open_model,
    read_result,
    rows_of,
    subject_for,
    write_result,
)
from faster_pruner.checkpoint.saving import round_weights
from faster_pruner.costs.budget import Budget
from faster_pruner.costs.cost import Macs, total
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.calibrated import Calibrated
from faster_pruner.method.recovery import recover
from faster_pruner.model.network import Network
from faster_pruner.model.spec import Sublayer, matrix_of, resolve
from faster_pruner.model.table import family_of
from faster_pruner.options import PRESETS, CalibrationOptions, Method
from faster_pruner.selection.search import Candidates, Selection, search_masks

BISECTIONS = 9


def magnitude_selection(calibrated: Calibrated, share: float) -> Selection:
    """Rank units by the squared norm of their producer rows and output columns."""
    model, cost = calibrated.model, Macs(calibrated.data.lengths)
    candidates: dict[str, Candidates] = {}
    for s in calibrated.sublayers:
        norm = s.weight(model).detach().square().sum(dim=0)
        for producer in s.parts.producers:
            module = model.get_submodule(producer.path)
            weight = matrix_of(module, transposed=producer.transposed, width=producer.inputs)
            norm = norm + weight.detach().square().sum(dim=1)
        importance = norm.view(s.units, s.unit_size).sum(dim=1)
        unit_cost = float(cost.of(s, torch.tensor([1]))[0])
        candidates[s.name] = Candidates(kind=s.spec.kind, importance=importance, unit_cost=unit_cost)
    return search_masks(candidates, share * total(cost, calibrated.sublayers))


def random_selection(sublayers: list[Sublayer], share: float, seed: int) -> Selection:
    """The same share of every sublayer, drawn at random, rounded down."""
    generator = torch.Generator().manual_seed(seed)
    return {
        s.name: torch.randperm(s.units, generator=generator)[: int(share * s.units)].sort().values for s in sublayers
    }


def loss_gradients(calibrated: Calibrated) -> dict[str, torch.Tensor]:
    """Gradient of the calibration loss with respect to every parameter, for the Taylor criterion."""
    model: Any = copy.deepcopy(calibrated.model)
    for each in calibrated.data.batches:
        (model(**each.inputs, labels=each.labels).loss * each.rows.numel()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def torch_pruning(
    calibrated: Calibrated, share: float, gradients: dict[str, torch.Tensor] | None = None
) -> Network | None:
    """torch-pruning at the ratio whose measured MACs come closest to the budget from below; Taylor with gradients.

    None when it cannot prune that far (it leaves every layer a head and some neurons).
    """
    low, high = 0.0, 1.0
    best: Network | None = None
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        pruned = _torch_pruned(calibrated, ratio, gradients)
        if macs_left(calibrated, pruned.sublayers) <= share:
            best, high = pruned, ratio
        else:
            low = ratio
    return best


def _torch_pruned(calibrated: Calibrated, ratio: float, gradients: dict[str, torch.Tensor] | None) -> Network:
    """One run of torch-pruning: `ratio` of the heads and of the neurons of every layer."""
    import torch_pruning as tp

    model: Any = copy.deepcopy(calibrated.model)
    layers = model.bert.encoder.layer
    batch = calibrated.data.batches[-1]
    inputs = {key: value[:2] for key, value in batch.inputs.items()}
    for name, gradient in (gradients or {}).items():
        model.get_parameter(name).grad = gradient.clone()
    taylor, magnitude = tp.importance.GroupTaylorImportance, tp.importance.GroupMagnitudeImportance
    importance = taylor() if gradients else magnitude(p=2)
    linears: dict[Any, float] = {layer.intermediate.dense: ratio for layer in layers}
    heads: dict[Any, int] = {
        linear: layer.attention.self.num_attention_heads
        for layer in layers
        for linear in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
    }
    others = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m not in linears and m not in heads]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tp.pruner.MetaPruner(
            model,
            inputs,
            importance=importance,
            global_pruning=False,
            pruning_ratio=0.0,
            # heads go only where their layer has a ratio above zero, too, whatever it is
            pruning_ratio_dict={**linears, **dict.fromkeys(heads, 0.5)},
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
            # by default one dictionary for all pruners
            in_channel_groups={},
            out_channel_groups={},
            ignored_layers=[m for m in others if m is model.classifier or m is model.bert.pooler.dense],
            output_transform=lambda output: output.logits.sum(),
        ).step()
    model.zero_grad()
    for layer in layers:
        attention = layer.attention.self
        attention.num_attention_heads = attention.query.out_features // attention.attention_head_size
        attention.all_head_size = attention.query.out_features
    return Network(model.eval(), resolve(model, family_of(model.config)))


def sliced(calibrated: Calibrated, selection: Selection) -> Network:
    """The dense model with a selection cut out and nothing recovered."""
    return Network(calibrated.model, calibrated.sublayers).copied().shrunk(selection)


def recovered(calibrated: Calibrated, pruned: Network | None) -> Network | None:
    """Our weight reconstruction on somebody else's choice of units."""
    if pruned is None:
        return None
    pruned = pruned.copied()
    own = PRESETS["default"].recovering(1.0, last=True)
    recover(pruned, calibrated.data, calibrated.statistics, method=own)
    return pruned


def ours_at(calibrated: Calibrated, share: float, method: Method) -> Network:
    """A cut of this package."""
    pruned = cut(calibrated, Budget(macs=share), method)
    return Network(pruned.model, pruned.sublayers)


def main() -> None:
    """Run the comparison and write a JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="sst2", choices=list(ROWS))
    parser.add_argument("--budgets", default="0.7,0.5,0.3")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="", help="only those whose names begin so; the others' rows stay")
    arguments = parser.parse_args()
    opened = open_model(arguments.task)
    validation = rows_of(opened, arguments.task, ("validation",))
    subject = subject_for(opened, arguments.task)
    found: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    budgets = [float(share) for share in arguments.budgets.split(",")]
    for seed in map(int, arguments.seeds.split(",")):
        rows = calibration_rows(opened, arguments.task, ROWS[arguments.task], seed)
        ours = calibrate(subject, rows, PRESETS["default"], CalibrationOptions(seed=seed))
        kwon = functools.cache(
            functools.partial(calibrate, subject, rows, PRESETS["kwon2022"], CalibrationOptions(seed=seed))
        )
        gradients = loss_gradients(ours)
        for share in budgets:
            for name, build in _models(ours, kwon, gradients, share, seed).items():
                if not name.startswith(arguments.methods):
                    continue
                pruned = build()
                if pruned is None:
                    print(seed, share, name, "cannot be reached", flush=True)
                    continue
                round_weights(pruned.model, opened.dtype)
                metrics = metrics_of(pruned.model, subject, validation)
                found[name, share].append({**metrics, "macs_kept": macs_left(ours, pruned.sublayers)})
                print(seed, share, name, {k: round(v, 3) for k, v in found[name, share][-1].items()}, flush=True)
    table = [
        {
            "method": name,
            "macs": share,
            "mean": {k: statistics.mean(r[k] for r in runs) for k in runs[0]},
            "spread": {k: statistics.stdev(r[k] for r in runs) if len(runs) > 1 else 0.0 for k in runs[0]},
        }
        for (name, share), runs in found.items()
    ]
    earlier = (read_result(f"baselines-{arguments.task}") or {"table": []})["table"]
    order = list(dict.fromkeys(row["method"] for row in [*earlier, *table]))
    kept = [r for r in earlier if not (r["macs"] in budgets and r["method"].startswith(arguments.methods))]
    table = sorted([*kept, *table], key=lambda row: (-row["macs"], order.index(row["method"])))
    write_result(f"baselines-{arguments.task}", {"task": arguments.task, "table": table})


def _models(
    ours: Calibrated, kwon: Callable[[], Calibrated], gradients: dict[str, torch.Tensor], share: float, seed: int
) -> dict[str, Callable[[], Network | None]]:
    """Every competitor, built when called."""
    taylor = functools.cache(lambda: torch_pruning(ours, share, gradients))
    magnitude = magnitude_selection(ours, share)
    no_recovery = replace(PRESETS["default"], recovery=None)
    return {
        "random": lambda: sliced(ours, random_selection(ours.sublayers, share, seed)),
        "magnitude": lambda: sliced(ours, magnitude),
        "torch-pruning, magnitude": lambda: torch_pruning(ours, share),
        "torch-pruning, Taylor": taylor,
        "torch-pruning, Taylor + our recovery": lambda: recovered(ours, taylor()),
        "kwon2022": lambda: ours_at(kwon(), share, PRESETS["kwon2022"]),
        "ours, selection alone": lambda: ours_at(ours, share, no_recovery),
        "ours (default)": lambda: ours_at(ours, share, PRESETS["default"]),
    }


if __name__ == "__main__":
    main()
