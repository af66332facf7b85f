"""Compare with other ways to choose units: equal measured MACs, same model, data and seeds, no retraining.

* random: units drawn at random, the same share of each sublayer;
* magnitude: units with the smallest weights removed, ranked over all layers, heads and neurons apart;
* torch-pruning: the PyPI library's group-magnitude and Taylor pruning of heads and FFN neurons, as in its BERT example;
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
from transformers import PreTrainedModel

from common import ROWS, calibration_rows, open_model, rows_of, write_result
from faster_pruner import surgery
from faster_pruner.checkpoint import Opened
from faster_pruner.costs import encoder_macs, unit_macs
from faster_pruner.evaluate import evaluate_rows
from faster_pruner.families import Sublayer, resolve
from faster_pruner.options import PRESETS, Budget, CalibrationOptions
from faster_pruner.pipeline import Calibrated, calibrate_model, cut
from faster_pruner.recover import recover
from faster_pruner.selection.search import Candidates, Selection, search_masks
from faster_pruner.tasks import GLUE

BISECTIONS = 9


def magnitude_selection(model: PreTrainedModel, sublayers: list[Sublayer], length: float, share: float) -> Selection:
    """Rank units by the squared norm of their producer rows and output columns."""
    candidates: dict[str, Candidates] = {}
    for s in sublayers:
        norm = s.output_of(model).weight.detach().square().sum(dim=0)
        for path in s.producer_paths:
            norm = norm + model.get_submodule(path).weight.detach().square().sum(dim=1)
        importance = norm.view(s.units, s.unit_size).sum(dim=1)
        candidates[s.name] = Candidates(kind=s.kind, importance=importance, unit_cost=unit_macs(s, length))
    return search_masks(candidates, share * encoder_macs(sublayers, length))


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
) -> PreTrainedModel | None:
    """torch-pruning at the ratio whose measured MACs come closest to the budget from below; Taylor with gradients.

    None when it cannot prune that far (it leaves every layer a head and some neurons).
    """
    total = encoder_macs(calibrated.sublayers, calibrated.data.length)
    low, high = 0.0, 1.0
    best: PreTrainedModel | None = None
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        model = _torch_pruned(calibrated, ratio, gradients)
        left = encoder_macs(resolve(model, calibrated.family), calibrated.data.length)
        if left <= share * total:
            best, high = model, ratio
        else:
            low = ratio
    return best


def _torch_pruned(calibrated: Calibrated, ratio: float, gradients: dict[str, torch.Tensor] | None) -> PreTrainedModel:
    """One run of torch-pruning: heads and neurons, global ranking, `ratio` of both."""
    import torch_pruning as tp

    model: Any = copy.deepcopy(calibrated.model)
    layers = model.bert.encoder.layer
    batch = calibrated.data.batches[-1]
    inputs = {key: value[:2] for key, value in batch.inputs.items()}
    for name, gradient in (gradients or {}).items():
        model.get_parameter(name).grad = gradient.clone()
    taylor, magnitude = tp.importance.GroupTaylorImportance, tp.importance.GroupMagnitudeImportance
    importance = taylor() if gradients else magnitude(p=2)
    linears = {layer.intermediate.dense: ratio for layer in layers}
    heads = {
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
            global_pruning=True,
            pruning_ratio=0.0,
            pruning_ratio_dict=linears,
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
            ignored_layers=[m for m in others if m is model.classifier or m is model.bert.pooler.dense],
            output_transform=lambda output: output.logits.sum(),
        ).step()
    model.zero_grad()
    for layer in layers:
        attention = layer.attention.self
        attention.num_attention_heads = attention.query.out_features // attention.attention_head_size
        attention.all_head_size = attention.query.out_features
    return model.eval()


def sliced(calibrated: Calibrated, selection: Selection) -> PreTrainedModel:
    """The dense model with a selection cut out and nothing recovered."""
    model = copy.deepcopy(calibrated.model)
    surgery.prune_units(model, calibrated.family, selection)
    return model


def recovered(calibrated: Calibrated, model: PreTrainedModel | None) -> PreTrainedModel | None:
    """Our weight reconstruction on somebody else's choice of units."""
    if model is None:
        return None
    model = copy.deepcopy(model)
    sublayers = resolve(model, calibrated.family)
    recover(model, sublayers, calibrated.data.batches, calibrated.statistics, method=PRESETS["default"])
    return model


def main() -> None:
    """Run the comparison and write a JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="sst2", choices=list(ROWS))
    parser.add_argument("--budgets", default="0.7,0.5,0.3")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    opened = open_model(arguments.task)
    validation = rows_of(opened, arguments.task, ("validation",))
    task = GLUE[arguments.task]
    found: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for seed in map(int, arguments.seeds.split(",")):
        rows = calibration_rows(opened, arguments.task, ROWS[arguments.task], seed)
        ours = _calibrate(opened, rows, "default", seed)
        kwon = _calibrate(opened, rows, "kwon2022", seed)
        gradients = loss_gradients(ours)
        for share in map(float, arguments.budgets.split(",")):
            for name, model in _models(ours, kwon, gradients, share, seed).items():
                pruned = model()
                if pruned is None:
                    print(seed, share, name, "cannot be reached", flush=True)
                    continue
                macs = encoder_macs(resolve(pruned, opened.family), ours.data.length)
                kept = macs / encoder_macs(ours.sublayers, ours.data.length)
                metrics = evaluate_rows(pruned, validation, task, split="validation").metrics
                found[name, share].append({**metrics, "macs_kept": kept})
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
    write_result(f"baselines-{arguments.task}", {"task": arguments.task, "table": table})


def _calibrate(opened: Opened, rows: Any, name: str, seed: int) -> Calibrated:
    """Statistics for a preset."""
    return calibrate_model(opened.model, opened.family, rows, PRESETS[name], CalibrationOptions(seed=seed))


def _models(
    ours: Calibrated, kwon: Calibrated, gradients: dict[str, torch.Tensor], share: float, seed: int
) -> dict[str, Callable[[], PreTrainedModel | None]]:
    """Every competitor, built when called."""
    taylor = functools.cache(lambda: torch_pruning(ours, share, gradients))
    budget = Budget(macs=share)
    magnitude = magnitude_selection(ours.model, ours.sublayers, ours.data.length, share)
    no_recovery = replace(PRESETS["default"], recovery="none", align=False)
    return {
        "random": lambda: sliced(ours, random_selection(ours.sublayers, share, seed)),
        "magnitude": lambda: sliced(ours, magnitude),
        "torch-pruning, magnitude": lambda: torch_pruning(ours, share),
        "torch-pruning, Taylor": taylor,
        "torch-pruning, Taylor + our recovery": lambda: recovered(ours, taylor()),
        "kwon2022": lambda: cut(kwon, budget, PRESETS["kwon2022"]).model,
        "ours, selection alone": lambda: cut(ours, budget, no_recovery).model,
        "ours (default)": lambda: cut(ours, budget, PRESETS["default"]).model,
    }


if __name__ == "__main__":
    main()
