"""What the least-squares recovery can still win at strong budgets: one lever at a time against the default preset.

python benchmarks/strong.py --tasks sst2,mrpc --budgets 0.2,0.1
python benchmarks/strong.py --tasks cola,qnli --heads folder      classifiers of benchmarks/heads.py, made if missing
python benchmarks/strong.py --show                                 docs/distillation.md from the saved JSON

The judge is KL(dense || pruned) of the predictions on training rows outside the calibration set, compared with the
default on the same rows (paired over seeds); validation rows are only reported. Levers of the recovery share the
default's selection: only the last recovery differs. Levers of the selection run a whole cut of their own.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from allocation_search import searched
from common import SHARED, open_model, read_result, subject_for, write_result, write_table
from distillation_page import PAGE, TITLES
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.costs.budget import Budget
from faster_pruner.data.batches import Batch, EncodedRows, pack, rows_with
from faster_pruner.data.glue import GLUE
from faster_pruner.data.sources import Rows, load_split
from faster_pruner.data.tasks import Data
from faster_pruner.host.devices import pick_device
from faster_pruner.linalg import RegressionMoments
from faster_pruner.method import algorithm, recovery, selecting
from faster_pruner.method.calibrated import Calibrated, Subject
from faster_pruner.method.recovery import recover
from faster_pruner.method.selecting import loss_curves, select, sizes_allowed
from faster_pruner.method.statistics import tokens_of
from faster_pruner.model.lockstep import Lockstep
from faster_pruner.model.network import Network
from faster_pruner.model.passes import inference
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.classification import encode
from faster_pruner.objectives.objective import Predicted
from faster_pruner.options import (
    PRESETS,
    CalibrationOptions,
    Descent,
    Method,
    Rounds,
    SolverOptions,
    Switches,
    customise,
)
from faster_pruner.progress import Silent, StageClock
from heads import cache_folder, head_of
from ideas import with_moments, with_recovery
from whole_layers import LayerDescent, Stacks, descend_layers

# The recovery by least squares alone, at every budget.
DEFAULT = customise(PRESETS["default"], Switches(descent=False))
# Calibration rows, most of them that a lever may use, held-out rows.
ROWS = {"sst2": (2048, 8192, 1024), "mrpc": (1024, 2640, 1024), "qnli": (1024, 1024, 976), "cola": (2048, 7500, 1024)}
_TOKENS = 4096


# What is measured on


@dataclass
class Case:
    """One task and seed: dense model, rows and its predictions on them; what several levers need is taken once.

    Attributes:
        opened: the dense checkpoint.
        subject: the same, as something to prune.
        first: the default's calibration rows.
        parts: batches of the calibration rows; the first part holds the default's, the others go on where it ends.
        held_out: batches of training rows outside of all of them.
        search_rows: batches of as many more, where the task has them, that nothing is fitted on: they judge a search.
        validation: batches.
        dense: log-probabilities of the dense model by split, [N, C], in the order of the batches.
        taken: calibrations by what they are for.
        prepared: shrunk students before their last recovery, by selection and budget.
        models: what the default makes, by budget.
        aims: what the dense head is given, by parts.
    """

    task: str
    seed: int
    opened: Opened
    subject: Subject
    first: EncodedRows
    parts: list[list[Batch]]
    held_out: list[Batch]
    search_rows: list[Batch]
    validation: list[Batch]
    dense: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    taken: dict[Any, Calibrated] = field(default_factory=dict[Any, Calibrated])
    prepared: dict[Any, tuple[Network, Calibrated]] = field(default_factory=dict[Any, tuple[Network, Calibrated]])
    models: dict[Any, nn.Module] = field(default_factory=dict[Any, nn.Module])
    aims: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def default(self, budget: Budget) -> nn.Module:
        """A copy of what the default preset makes."""
        if budget.macs not in self.models:
            self.models[budget.macs] = recovered(self, budget, Fit())
        return copy.deepcopy(self.models[budget.macs])

    def aim(self, parts: int) -> Tensor:
        """[N, d]: what the dense model's head is given for the first parts of the calibration rows."""
        if parts not in self.aims:
            batches = [batch for part in self.parts[:parts] for batch in part]
            self.aims[parts] = head_inputs(self.opened.model, batches)
        return self.aims[parts]

    @property
    def calibrated(self) -> Calibrated:
        """The default's calibration."""
        return self.calibration("default", DEFAULT, 1)

    def calibration(self, name: str, method: Method, parts: int) -> Calibrated:
        """The statistics that a method needs of the first parts of the rows."""
        key = (name, parts)
        if key not in self.taken:
            # one part is packed for the method, which says how many rows are differentiated
            rows = self.first if parts == 1 else [batch for part in self.parts[:parts] for batch in part]
            self.taken[key] = algorithm.calibrate(self.subject, rows, method, CalibrationOptions(seed=self.seed))
        return self.taken[key]

    def student(self, name: str, method: Method, budget: Budget) -> tuple[Network, Calibrated]:
        """A copy of the shrunk model before its last recovery, and the calibration that chose its units."""
        key = (name, budget.macs)
        if key not in self.prepared:
            calibrated = self.calibration(name, method, 1)
            self.prepared[key] = (shrunk(calibrated, budget, method), calibrated)
        network, calibrated = self.prepared[key]
        return network.copied(), calibrated


def open_case(task: str, seed: int, heads: Path, *, more: bool) -> Case:
    """Open the dense model and draw the rows; `more` of them for levers that use more than the default."""
    own = task in ("sst2", "mrpc")
    folder = None if own else head_of(task, heads / task)
    opened = open_model(task) if own else open_checkpoint(str(folder), device=pick_device(None))
    subject = subject_for(opened, task)
    source = Data(folder=SHARED / "data" / "glue").source(GLUE[task])
    train, validation = load_split(source, ("train",)), load_split(source, ("validation",))
    usual, most, held_out = ROWS[task]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    bounds, sizes = [0], [usual]
    while more and sizes[-1] < most:
        sizes.append(min(most, 2 * sizes[-1]))
    bounds += sizes
    parts = [
        batches_of(opened, task, train.chosen(order[start:stop]), offset=start, subject=subject if start == 0 else None)
        for start, stop in pairwise(bounds)
    ]
    held = batches_of(opened, task, train.chosen(order[-held_out:]))
    first = encode(train.chosen(order[:usual]), GLUE[task], opened.processor, config=opened.model.config, limit=128)
    rest = order[usual:-held_out][-held_out:]
    search = [] if more or not rest else batches_of(opened, task, train.chosen(rest))
    case = Case(task, seed, opened, subject, first, parts, held, search, batches_of(opened, task, validation))
    for split in ("held_out", "validation"):
        case.dense[split] = predictions(subject, opened.model, getattr(case, split))
    return case


def batches_of(
    opened: Opened, task: str, rows: Rows, *, offset: int = 0, subject: Subject | None = None
) -> list[Batch]:
    """Rows in batches; those that the moments of the default preset are taken from first, when a subject is given."""
    encoded = encode(rows, GLUE[task], opened.processor, config=opened.model.config, limit=128)
    tokens = subject.moment_tokens(DEFAULT) if subject else None
    first = None if tokens is None else rows_with(encoded.lengths, tokens)
    packed = pack(encoded, tokens_per_batch=_TOKENS, device=pick_device(None), differentiated=first)
    return [replace(batch, rows=batch.rows + offset) for batch in packed]


def predictions(subject: Subject, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """[N, C] float64 log-probabilities."""
    with inference(model):
        found = [subject.objective.readout(model(**batch.inputs), batch).values for batch in batches]
    return torch.cat(found).double().log_softmax(dim=-1)


def judged(case: Case, model: nn.Module) -> dict[str, Any]:
    """What a pruned model is worth."""
    metric = GLUE[case.task].metrics[0]
    found: dict[str, Any] = {}
    for split in ("held_out", "validation"):
        batches: list[Batch] = getattr(case, split)
        values, dense = predictions(case.subject, model, batches), case.dense[split]
        labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
        predicted = Predicted(values.numpy(), torch.arange(len(values)).numpy(), labels.numpy(), None)
        found[split] = float(case.subject.objective.score(predicted, None)[metric])
        if split == "held_out":
            found["kl"] = float((dense.exp() * (dense - values)).sum(dim=1).mean())
            found["agreement"] = 100 * float((values.argmax(1) == dense.argmax(1)).double().mean())
    return found


# The default's cut, up to its last recovery


def shrunk(calibrated: Calibrated, budget: Budget, method: Method) -> Network:
    """`algorithm.cut` without its last recovery."""
    bounds = selecting.bounds_for(calibrated, budget)
    sizes = sizes_allowed(calibrated.sublayers, budget, method)
    student, present = calibrated.network.copied(), calibrated
    for place, exponent in enumerate(method.rounds.exponents(min(bound.share for bound in bounds))):
        if place > 0:
            recover(student, calibrated.data, calibrated.statistics, method=method)
            present = algorithm._retake(calibrated, student, method, StageClock(Silent()))
        step = [replace(bound, most=bound.power(exponent)) for bound in bounds]
        student = student.shrunk(select(present, method, step, sizes))
    return student


def first_batches(calibrated: Calibrated, count: int) -> Calibrated:
    """What a recovery needs of the first batches only."""
    data = replace(calibrated.data, batches=calibrated.data.batches[:count])
    own = calibrated.statistics.sublayers.items()
    kept = {name: replace(each, read=each.read[:count], targets=each.targets[:count]) for name, each in own}
    return replace(calibrated, data=data, statistics=replace(calibrated.statistics, sublayers=kept))


# Recoveries that fit in another way: the functions of `method.recovery` are replaced while they run


@contextmanager
def replaced(owner: Any, **functions: Any) -> Generator[None]:
    """Other functions in a module or class."""
    before = {name: getattr(owner, name) for name in functions}
    for name, function in functions.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(owner, name, function)


class WeightedMoments:
    """What `recovery` asks of regression moments, of tokens with weights [T] in the sum of squares."""

    def __init__(self, x: Tensor, r: Tensor, weight: Tensor) -> None:
        w = (weight / weight.mean()).double()[:, None]
        self._x_mean, self._r_mean = (w * x).sum(0) / w.sum(), (w * r).sum(0) / w.sum()
        root = w.sqrt().float()
        self._x, self._r, self._w, self._plain_x, self._plain_r = (
            root * (x - self._x_mean.float()),
            root * (r - self._r_mean.float()),
            w,
            x,
            r,
        )

    def normal_equations(self, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """Matrix [n, n] and right sides [n, d] of the fit with a bias."""
        assert intercept
        return (self._x.T @ self._x).double(), (self._x.T @ self._r).double()

    def intercept(self, weight: Tensor) -> Tensor:
        """[d]: the bias that goes with `weight` [d, n]."""
        return self._r_mean - weight.double() @ self._x_mean

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Relative error, weighted."""
        rest = functional.linear(self._plain_x, weight.float(), bias.float()) - self._plain_r
        return float(((self._w * rest.double().square()).sum() / (self._w * self._plain_r.square()).sum()).sqrt())


@dataclass
class Seen:
    """What one sublayer was fitted on, over all tokens read: x [T, n], r [T, d] and the target [T, d] of the stream."""

    x: Tensor
    r: Tensor
    target: Tensor


def seen_at(run: Lockstep, targets: recovery.Targets, sublayer: Sublayer, tokens: Sequence[Tensor]) -> Seen:
    """Let all batches arrive at a sublayer."""
    xs: list[Tensor] = []
    rs: list[Tensor] = []
    aims: list[Tensor] = []
    for arrival, target in zip(run.arrivals(sublayer), targets.of(sublayer, tokens), strict=True):
        chosen = tokens[arrival.batch]
        assert arrival.base is not None
        xs.append(tokens_of(arrival.x, chosen))
        rs.append(target - tokens_of(arrival.base, chosen))
        aims.append(target)
    return Seen(torch.cat(xs), torch.cat(rs), torch.cat(aims))


def norm_after(model: nn.Module, sublayer: Sublayer) -> nn.LayerNorm:
    """The LayerNorm that follows a sublayer of BERT."""
    path = "attention.output.LayerNorm" if sublayer.spec.mixes_tokens else "output.LayerNorm"
    norm = model.get_submodule(sublayer.prefix + path)
    assert isinstance(norm, nn.LayerNorm)
    return norm


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How the last recovery differs from the default's.

    Attributes:
        weighted: tokens weigh 1 / variance of the target over channels, what a LayerNorm divides by.
        norms: gain and bias of the LayerNorm after each sublayer are fitted, channel by channel, to the dense model's
            values there.
        parts: how many parts of the rows the recovery sees.
        ridge: of the least squares, None for the default's.
    """

    weighted: bool = False
    norms: bool = False
    parts: int = 1
    ridge: float | None = None


def recovered(case: Case, budget: Budget, fit: Fit, *, name: str = "default", method: Method = DEFAULT) -> nn.Module:
    """The last recovery of a student, fitted as `fit` says."""
    network, calibrated = case.student(name, method, budget)
    if fit.parts > 1:
        whole = case.calibration("more rows", DEFAULT, len(case.parts))
        calibrated = first_batches(whole, sum(len(part) for part in case.parts[: fit.parts]))
    own = method
    if fit.ridge is not None:
        own = with_recovery(method, solver=SolverOptions(name="cholesky", ridge=fit.ridge))
    Refit(case, calibrated, fit).run(network, own)
    return network.model


class Refit:
    """One recovery with other fits."""

    def __init__(self, case: Case, calibrated: Calibrated, fit: Fit) -> None:
        self.case, self.calibrated, self.fit = case, calibrated, fit
        self.seen: Seen | None = None

    def run(self, network: Network, method: Method) -> None:
        """`recovery.recover`, in place."""
        plain = self.fit == Fit(parts=self.fit.parts, ridge=self.fit.ridge)
        if plain:
            recover(network, self.calibrated.data, self.calibrated.statistics, method=method)
            return
        original_fit = recovery._fit

        def fit(model: nn.Module, sublayer: Sublayer, moments: Any, options: Any) -> Any:
            result = original_fit(model, sublayer, moments, options)
            if self.fit.norms:
                self.fit_norm(model, sublayer)
            self.seen = None
            return result

        with replaced(recovery, _gather=self.gather, _fit=fit):
            recover(network, self.calibrated.data, self.calibrated.statistics, method=method)

    def gather(
        self, run: Lockstep, targets: recovery.Targets, sublayer: Sublayer, tokens: Sequence[Tensor], **_: Any
    ) -> Any:
        """As `recovery._gather`, and everything is kept until the fit."""
        self.seen = seen_at(run, targets, sublayer, tokens)
        return self.moments()

    def moments(self) -> Any:
        """Of what was seen last."""
        assert self.seen is not None
        if self.fit.weighted:
            return WeightedMoments(self.seen.x, self.seen.r, 1 / self.seen.target.var(dim=1, correction=0))
        moments = RegressionMoments(self.seen.x.shape[1], self.seen.r.shape[1], self.seen.x.device)
        moments.add(self.seen.x, self.seen.r)
        return moments

    def fit_norm(self, model: nn.Module, sublayer: Sublayer) -> None:
        """Gain and bias towards the dense model's LayerNorm of the target."""
        assert self.seen is not None
        norm, dense = norm_after(model, sublayer), norm_after(self.calibrated.model, sublayer)
        projection: Any = sublayer.projection(model)
        with torch.no_grad():
            stream = self.seen.target + projection(self.seen.x) - self.seen.r
            z = functional.layer_norm(stream, norm.normalized_shape, eps=norm.eps).double()
            aim = dense(self.seen.target).double()
            slope = ((z - z.mean(0)) * (aim - aim.mean(0))).sum(0) / (z - z.mean(0)).square().sum(0)
            norm.weight.copy_(slope)
            norm.bias.copy_(aim.mean(0) - slope * z.mean(0))


# What comes after the recovery


def layers_fitted(options: LayerDescent, parts: int, case: Case, model: Any) -> nn.Module:
    """A recovered model whose layers are fitted as a whole to the first parts of the rows, in place."""
    dense: Any = case.opened.model
    batches = [batch for part in case.parts[:parts] for batch in part]
    layers, wanted = list(model.bert.encoder.layer), list(dense.bert.encoder.layer)
    stacks = Stacks(model=model, layers=layers, dense=dense, wanted=wanted, first_alone=True)
    descend_layers(stacks, batches, options, case.seed)
    return model


def head_inputs(model: Any, batches: Sequence[Batch]) -> Tensor:
    """[N, d]: CLS after the last layer."""
    with inference(model):
        return torch.cat([model.bert(**batch.inputs).last_hidden_state[:, 0] for batch in batches])


def ridge_to_own(linear: nn.Linear, x: Tensor, aim: Tensor, ridge: float) -> None:
    """Fit a Linear to `aim` [N, C] on x [N, d], relative ridge towards its own weights, bias free."""
    with torch.no_grad():
        x, aim, own = x.double(), aim.double(), linear.weight.double()
        x_mean, aim_mean = x.mean(0), aim.mean(0)
        gram, cross = (x - x_mean).T @ (x - x_mean), (x - x_mean).T @ (aim - aim_mean)
        absolute = ridge * gram.diagonal().mean()
        gram.diagonal().add_(absolute)
        weight = torch.linalg.solve(gram, cross + absolute * own.T).T
        linear.weight.copy_(weight)
        linear.bias.copy_(aim_mean - weight @ x_mean)


def likelihood_to_own(linear: nn.Linear, x: Tensor, aim: Tensor, ridge: float) -> None:
    """Fit a Linear by KL(softmax(aim) || softmax(x W' + b)) on x [N, d], ridge towards its own weights: convex."""
    x, own = x.double(), linear.weight.detach().double()
    centred = x - x.mean(0)
    absolute = ridge * float(centred.square().mean())
    weight, bias = own.clone().requires_grad_(), linear.bias.detach().double().requires_grad_()
    wanted = aim.double().softmax(1)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(x, weight, bias), wanted)
        loss = loss + 0.5 * absolute * (weight - own).square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def fit_head(
    case: Case, model: Any, *, pooler: float | None, head: float | None, likelihood: bool = False, parts: int = 1
) -> nn.Module:
    """Refit the pooler towards the dense values before its tanh, then the classifier towards the dense logits."""
    dense: Any = case.opened.model
    batches = [batch for part in case.parts[:parts] for batch in part]
    x, wanted = head_inputs(model, batches), case.aim(parts)
    with torch.no_grad():
        if pooler is not None:
            ridge_to_own(model.bert.pooler.dense, x, dense.bert.pooler.dense(wanted), pooler)
        logits = dense.classifier(dense.bert.pooler.dense(wanted).tanh())
        pooled = model.bert.pooler.dense(x).tanh()
    if head is not None:
        (likelihood_to_own if likelihood else ridge_to_own)(model.classifier, pooled, logits, head)
    return model


# The levers

Lever = Callable[[Case, Budget], nn.Module]


def fitted(**changes: Any) -> Lever:
    """The default's units, another last recovery."""
    return lambda case, budget: recovered(case, budget, Fit(**changes))


def selected(name: str, method: Method) -> Lever:
    """A whole cut by another method, the default's recovery."""
    return lambda case, budget: recovered(case, budget, Fit(), name=name, method=method)


def descended(**changes: Any) -> Lever:
    """The default's units, and a descent of every sublayer in the last recovery."""

    def lever(case: Case, budget: Budget) -> nn.Module:
        network, calibrated = case.student("default", DEFAULT, budget)
        method = with_recovery(DEFAULT, descent=Descent(**changes))
        recover(network, calibrated.data, calibrated.statistics, method=method)
        return network.model

    return lever


def with_curves(case: Case, budget: Budget, factors: Callable[[Sublayer], float]) -> nn.Module:
    """A cut and its recovery where every sublayer's loss curve is taken times a factor."""

    def curves(calibrated: Calibrated, options: Any) -> Any:
        found, by_name = loss_curves(calibrated, options), {s.name: factors(s) for s in calibrated.sublayers}
        return {name: replace(curve, loss=curve.loss * by_name[name]) for name, curve in found.items()}

    with replaced(selecting, loss_curves=curves):
        network = shrunk(case.calibrated, budget, DEFAULT)
    recover(network, case.calibrated.data, case.calibrated.statistics, method=DEFAULT)
    return network.model


def scaled(factor: float) -> Lever:
    """The loss curves of attention times a factor: above 1 keeps more heads, below 1 more neurons."""
    return lambda case, budget: with_curves(case, budget, lambda s: factor if s.spec.mixes_tokens else 1.0)


def best_allocation(case: Case, budget: Budget) -> nn.Module:
    """The allocation of several that is best by KL on training rows of its own, each candidate cut and recovered."""
    judges = case.search_rows
    dense = predictions(case.subject, case.opened.model, judges)

    def loss(model: nn.Module) -> float:
        return float((dense.exp() * (dense - predictions(case.subject, model, judges))).sum(dim=1).mean())

    names = [sublayer.name for sublayer in case.calibrated.sublayers]

    def made(found: Tensor) -> nn.Module:
        factors = dict(zip(names, found.tolist(), strict=True))
        return with_curves(case, budget, lambda s: factors[s.name])

    return searched(case.default(budget), len(names), made=made, loss=loss, seed=case.seed)


def headed(first: Lever | None = None, **changes: Any) -> Lever:
    """Another lever, then the head."""
    return lambda case, budget: fit_head(case, (first or Case.default)(case, budget), **changes)


def layered(*, first: Lever | None = None, parts: int = 1, **changes: Any) -> Lever:
    """Another lever, then layer by layer; the default's result is kept for further steps."""
    options = LayerDescent(**changes)

    def lever(case: Case, budget: Budget) -> nn.Module:
        if first is not None:
            return layers_fitted(options, parts, case, first(case, budget))
        key = (options, parts, budget.macs)
        if key not in case.models:
            case.models[key] = layers_fitted(options, parts, case, case.default(budget))
        return copy.deepcopy(case.models[key])

    return lever


def more_rows(parts: int) -> Lever:
    """The default's units, a recovery that sees 2^(parts - 1) times the rows."""
    return fitted(parts=parts)


LEVERS: dict[str, Lever] = {
    "default": Case.default,
    "moments of 16 tokens per neuron": selected("16", with_moments(DEFAULT, moment_tokens=16)),
    "moments of all rows": selected("all", with_moments(DEFAULT, moment_tokens=None)),
    "classifier, ridge 1e-2": headed(pooler=None, head=1e-2),
    "classifier, ridge 1e-1": headed(pooler=None, head=1e-1),
    "classifier, ridge 1": headed(pooler=None, head=1.0),
    "pooler, ridge 1e-1": headed(pooler=1e-1, head=None),
    "pooler, ridge 1": headed(pooler=1.0, head=None),
    "pooler and classifier, ridge 1e-1": headed(pooler=1e-1, head=1e-1),
    "pooler and classifier, ridge 1": headed(pooler=1.0, head=1.0),
    "classifier by KL, ridge 1e-1": headed(pooler=None, head=1e-1, likelihood=True),
    "classifier by KL, ridge 1e-2": headed(pooler=None, head=1e-2, likelihood=True),
    "2 x rows": more_rows(2),
    "4 x rows": more_rows(3),
    "ridge 1e-3": fitted(ridge=1e-3),
    "ridge 1e-1": fitted(ridge=1e-1),
    "three rounds": selected("three", replace(DEFAULT, rounds=Rounds(count=3, below=1.0))),
    "four rounds": selected("four", replace(DEFAULT, rounds=Rounds(count=4, below=1.0))),
    "tokens weighted by LayerNorm": fitted(weighted=True),
    "LayerNorm fitted": fitted(norms=True),
    "LayerNorm fitted, tokens weighted": fitted(norms=True, weighted=True),
    "sublayers by descent": descended(epochs=8),
    "sublayers by descent, 1024 tokens per step": descended(epochs=8, tokens_per_step=1024),
    "sublayers by descent, half the rate": descended(epochs=8, rate=0.01),
    "sublayers by descent, twice the rate": descended(epochs=8, rate=0.04),
    "sublayers by descent, 4 epochs": descended(),
    "sublayers by descent, 16 epochs": descended(epochs=16),
    "sublayers by descent, classifier by KL": headed(descended(epochs=8), pooler=None, head=1e-1, likelihood=True),
    "layers by descent, 3 epochs": layered(epochs=3),
    "layers by descent": layered(epochs=8),
    "pairs of layers by descent": layered(epochs=8, span=2),
    "all layers by descent, to the last CLS": layered(epochs=8, span=6),
    "layers by descent, classifier by KL": headed(layered(epochs=8), pooler=None, head=1e-1, likelihood=True),
    "layers by descent, 4 x rows": layered(epochs=2, parts=3),
    "layers by descent, 4 x rows, 8 epochs": layered(epochs=8, parts=3),
    "layers by descent after moments of 16": layered(
        first=selected("16", with_moments(DEFAULT, moment_tokens=16)), epochs=8
    ),
    "attention curves x 0.5": scaled(0.5),
    "attention curves x 2": scaled(2.0),
    "allocation searched by loss": best_allocation,
}


# Running and showing


def run(task: str, seed: int, budgets: Sequence[float], names: Sequence[str], heads: Path) -> Iterator[dict[str, Any]]:
    """One record per lever and budget."""
    case = open_case(task, seed, heads, more=any("x rows" in name for name in names))
    for share in budgets:
        against: dict[str, float] = {}
        for name in names:
            started = time.perf_counter()
            found = judged(case, LEVERS[name](case, Budget(macs=share)))
            print(task, seed, share, name, found, f"{time.perf_counter() - started:.0f}s", flush=True)
            yield {"task": task, "seed": seed, "macs": share, "lever": name, **found, **against}
            if name == "default":
                # of the same call: another machine's arithmetic makes another default
                against = {"against": found["kl"]}


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a record is of."""
    return record["task"], record["seed"], record["macs"], record["lever"]


def table(records: list[dict[str, Any]], task: str) -> list[str]:
    """Markdown: a row per lever; per budget held-out KL, its paired difference, agreement and the validation metric."""
    own = {key_of(r): r for r in records if r["task"] == task and r["lever"] in LEVERS}
    budgets = sorted({r["macs"] for r in own.values()}, reverse=True)
    cells = "held-out KL at {0:g} | minus default | agreement | validation"
    lines = ["| lever | " + " | ".join(cells.format(b) for b in budgets) + " |"]
    lines.append("|---" * (1 + 4 * len(budgets)) + "|")
    for lever in dict.fromkeys(r["lever"] for r in sorted(own.values(), key=lambda r: list(LEVERS).index(r["lever"]))):
        row: list[str] = []
        for budget in budgets:
            runs = [r for r in own.values() if r["lever"] == lever and r["macs"] == budget]
            pairs = [
                r["kl"] - r.get("against", own[task, r["seed"], budget, "default"]["kl"])
                for r in runs
                if (task, r["seed"], budget, "default") in own
            ]
            row += [_cell([r["kl"] for r in runs], 4), _cell(pairs, 4, sign="+")]
            row += [_cell([r["agreement"] for r in runs], 2), _cell([r["validation"] for r in runs], 2)]
        lines.append(f"| {lever} | " + " | ".join(row) + " |")
    return lines


def _cell(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean and spread."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{spread}"


def main() -> None:
    """Run or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="sst2,mrpc")
    parser.add_argument("--budgets", default="0.2,0.1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="names of levers, separated by semicolons; all by default")
    parser.add_argument("--heads", type=Path, default=cache_folder(), help="folder of the checkpoints of heads.py")
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = read_result("strong") or []
    if not arguments.show:
        names = [name for name in arguments.only.split(";") if name] or list(LEVERS)
        budgets = [float(b) for b in arguments.budgets.split(",")]
        for task in arguments.tasks.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                for record in run(task, seed, budgets, names, arguments.heads):
                    records = [r for r in records if key_of(r) != key_of(record)] + [record]
                    write_result("strong", records)
    lines: list[str] = []
    for task in dict.fromkeys(r["task"] for r in records):
        lines += ["", f"{TITLES[task]}:", "", *table(records, task)]
    print("\n".join(lines))
    write_table(PAGE, "strong", lines[1:])


if __name__ == "__main__":
    main()
