"""The one pass over the calibration set: batches in, statistics out.

One forward and one backward per batch give, for every sublayer at once and for every example, the mask gradient

    ``g[i, u] = sum over the tokens t of i and the columns c of u of X[t, c] (dL/dX)[t, c]``

the second moments ``A = X' X`` and ``G = (dL/dY)' (dL/dY)`` (the K-FAC factors), and the targets of the recovery. All
are sums over tokens or rows, so they are split over processes and added up (`host.ranks`); targets and sources stay in
the process that passed through the batch.

Moments settle long before the recovery's regressions do. So the backward may be confined to some of the batches
(`Batch.differentiated`); the others run forward only, for their targets, except through the last sublayers, of whose
tokens the objective reads only a few (in a classifier, CLS): those are cheap to differentiate and need every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from faster_pruner.data.batches import Batch
from faster_pruner.errors import NumericalError
from faster_pruner.host.mapped import home
from faster_pruner.host.spill import HiddenStates
from faster_pruner.linalg import SecondMoment
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.model.gradients import Observation, gradients
from faster_pruner.model.network import Network
from faster_pruner.model.reading import Reading, Rule, real_tokens
from faster_pruner.model.spec import Sublayer
from faster_pruner.objectives.objective import Cotangents, Objective
from faster_pruner.objectives.parts import predicted, try_parts
from faster_pruner.options import Fisher, Method
from faster_pruner.progress import Progress, Silent, counted


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the method at hand will use; nothing else is computed.

    Attributes:
        labels: gradients of the loss of given labels, not of the model's own predictions.
        mask_gradients: per-example mask gradients (first-order selection).
        moments: A and G (second-order selection).
        targets: what every branch aims at in the dense model (recovery against the dense model).
        sources: dense inputs of the producers (alignment).
    """

    labels: bool = False
    mask_gradients: bool = False
    moments: bool = False
    targets: bool = False
    sources: bool = False

    @classmethod
    def of(cls, method: Method) -> Needs:
        """What a method uses."""
        first_order = isinstance(method.selection, Fisher)
        return cls(
            labels=method.labels,
            mask_gradients=first_order,
            moments=not first_order,
            targets=method.aims_at_dense,
            sources=method.align is not None,
        )


@dataclass(kw_only=True)
class SublayerStatistics:
    """Statistics of one sublayer.

    Attributes:
        mask_gradients: [N, U], in the original order of the rows; None when not needed.
        x: second moment of X over the tokens that the objective reads; None when not needed.
        y_gradient: second moment of dL/dY over the same tokens; None when not needed.
        rows: how many rows were differentiated here: those of the moments and the mask gradients.
        read: per batch [B, S] bool, the real tokens that the objective reads (in the last layer of a classifier, CLS).
        targets: per batch [tokens read, d], in the precision of the pass; empty when not needed, and for what runs
            several times in a forward.
        sources: for each of the first batches, those that were differentiated here, [T, d] over the tokens of
            `source_tokens`, in the precision of the pass; empty when not needed.
    """

    mask_gradients: Tensor | None = None
    x: SecondMoment | None = None
    y_gradient: SecondMoment | None = None
    rows: int = 0
    read: list[Tensor] = field(default_factory=list)
    targets: Sequence[Tensor] = ()
    sources: Sequence[Tensor] = ()


def tokens_of(x: Tensor, chosen: Tensor) -> Tensor:
    """[T, d]: the tokens of x [B, S, d] that are true in `chosen` [B, S]; a view when all are."""
    return x.flatten(0, 1) if bool(chosen.all()) else x[chosen]


def source_tokens(sublayer: Sublayer, read: Tensor, real: Tensor) -> Tensor:
    """[B, S] bool: tokens whose producer inputs matter: all real ones where tokens are mixed, else those read."""
    return real if sublayer.spec.mixes_tokens else read


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of all sublayers, by name."""

    sublayers: dict[str, SublayerStatistics]
    rows: int

    def __getitem__(self, name: str) -> SublayerStatistics:
        return self.sublayers[name]


@dataclass(frozen=True)
class Probe:
    """What a statistics pass asks the model.

    Attributes:
        objective: whose readout finds the predictions.
        cotangents: dL/dpredictions, where the backward starts.
        reading: which tokens the objective reads.
    """

    objective: Objective
    cotangents: Cotangents
    reading: Reading


class _Collector:
    """Turns observations into statistics."""

    def __init__(self, sublayers: Sequence[Sublayer], data: CalibrationSet, reading: Reading, needs: Needs) -> None:
        self.needs, self.sublayers, self.reading = needs, sublayers, reading
        self.rows, device, setting = data.rows, data.batches[0].rows.device, data.setting
        self.ranks = data.ranks
        # tokens that are exchanged as they are, by sublayer: (place of the batch, x, dL/dy)
        one_a_row = {s.name for s in sublayers if reading.rules.get(s.name) in (Rule.FIRST, Rule.LAST)}
        self.exchanged: dict[str, list[tuple[int, Tensor, Tensor]]] = {
            s.name: [] for s in sublayers if s.name in one_a_row and needs.moments and not self.ranks.alone
        }
        self.place = 0
        # hidden states of a bfloat16 pass are not known better than that
        self.kept_in = torch.bfloat16 if setting.precision == "bfloat16" else torch.float32
        self.targets = {s.name: HiddenStates(setting.shelf) for s in sublayers}
        self.sources = {s.name: HiddenStates(setting.shelf) for s in sublayers}
        self.batch: Batch | None = None
        self.found: Mapping[str, Tensor] | None = None
        # sublayers of which a call was observed in this batch already
        self.begun: set[str] = set()
        self.statistics = {
            s.name: SublayerStatistics(
                mask_gradients=torch.zeros(self.rows, s.units, device=device) if needs.mask_gradients else None,
                x=SecondMoment(s.columns, device, home=home(device)) if needs.moments else None,
                y_gradient=SecondMoment(s.width, device, home=home(device)) if needs.moments else None,
                targets=self.targets[s.name],
                sources=self.sources[s.name],
            )
            for s in sublayers
        }

    def begin(self, place: int, batch: Batch, found: Mapping[str, Tensor] | None) -> None:
        """The next observations are of the batch at `place`; `found` is what it reads where no rule says so."""
        self.place, self.batch, self.found = place, batch, found
        self.begun.clear()

    @torch.no_grad()
    def observe(self, sublayer: Sublayer, seen: Observation) -> None:
        """Fold one call of one sublayer on one batch into its sums."""
        assert self.batch is not None
        rows, own = self.batch.rows.numel(), self.statistics[sublayer.name]
        seen = seen.by_row(rows)
        real = real_tokens(sublayer, self.batch, seen.x)
        read = self.reading.tokens_read(sublayer, real, self.batch, self.found)
        first = sublayer.name not in self.begun
        self.begun.add(sublayer.name)
        if first:
            own.read.append(read)
        if self.needs.targets and sublayer.stack.calls == 1:
            self.targets[sublayer.name].append(tokens_of(self._target(seen), read))
        if seen.x_gradient is None or seen.y_gradient is None:
            return
        own.rows += rows if first else 0
        if own.mask_gradients is not None:
            product = (seen.x.float() * seen.x_gradient.float() * real[:, :, None]).sum(dim=1)
            own.mask_gradients[self.batch.rows] += product.view(-1, sublayer.units, sublayer.unit_size).sum(dim=2)
        if own.x is not None and own.y_gradient is not None:
            x, gradient = tokens_of(seen.x, read), tokens_of(seen.y_gradient, read)
            if sublayer.name in self.exchanged:
                self.exchanged[sublayer.name].append((self.place, x.clone(), gradient.clone()))
            else:
                own.x.add(x)
                own.y_gradient.add(gradient)
        if self.needs.sources and seen.source is not None:
            chosen = source_tokens(sublayer, read, real)
            self.sources[sublayer.name].append(tokens_of(seen.source, chosen).to(self.kept_in))

    def _target(self, seen: Observation) -> Tensor:
        """[B, S, d]: what the branch makes of the model, in the precision that is kept."""
        if seen.base is None:
            return seen.y.to(self.kept_in)
        return torch.add(seen.base.float(), seen.y, out=torch.empty_like(seen.base, dtype=self.kept_in))

    def share_centres(self) -> None:
        """Every process accumulates its moments about the means that the first one has found."""
        for moment in self._moments():
            moment.share_centre(self.ranks)

    def finish(self) -> None:
        """Complete the sums, over all processes; from here on statistics are only read."""
        for name, tokens in self.exchanged.items():
            self._add_exchanged(self.statistics[name], tokens)
        for moment in self._moments():
            moment.finish()
        for name, own in self.statistics.items():
            for moment in (own.x, own.y_gradient):
                if moment is not None and name not in self.exchanged:
                    moment.add_up(self.ranks)
        for own in self.statistics.values():
            if own.mask_gradients is not None:
                self.ranks.sum_(own.mask_gradients)
            rows = torch.tensor(own.rows)
            self.ranks.sum_(rows)
            own.rows = int(rows)

    def _add_exchanged(self, own: SublayerStatistics, tokens: list[tuple[int, Tensor, Tensor]]) -> None:
        """Add the tokens of all processes, in the order in which one process adds them.

        Where a row has one token, there are hardly more tokens than columns. Then an elimination hangs on the last bits
        of their moment, and these on the order of its sums; and the tokens are no more bytes than the moment.
        """
        assert own.x is not None
        assert own.y_gradient is not None
        every = [each for part in self.ranks.gather(tokens) for each in part]
        for _, x, gradient in sorted(every, key=lambda each: each[0]):
            own.x.add(x)
            own.y_gradient.add(gradient)
        tokens.clear()

    def _moments(self) -> Iterator[SecondMoment]:
        """All of them, in the order of the sublayers."""
        for own in self.statistics.values():
            yield from (moment for moment in (own.x, own.y_gradient) if moment is not None)

    def partly_read_from(self) -> int:
        """Index of the first of the last sublayers, of whose tokens the objective reads only some."""
        start = len(self.sublayers)
        while start > 0 and self.reading.partial(self.sublayers[start - 1]):
            start -= 1
        return start


def take_statistics(
    network: Network, data: CalibrationSet, probe: Probe, *, needs: Needs, progress: Progress | None = None
) -> Statistics:
    """Run the pass.

    Args:
        network: the model, with the sublayers that take part.
        data: the calibration set, batches that are `differentiated` first; this process passes through its own.
        probe: what the model is asked.
        needs: which statistics to gather.
        progress: told after each batch.

    Raises:
        DataError: the model cannot be run on a batch, or labels do not fit its predictions.
        NumericalError: it predicts NaN or infinity.
        OptionError: labels are needed and there are none.
    """
    model, sublayers, objective = network.model, network.sublayers, probe.objective
    collector = _Collector(sublayers, data, probe.reading, needs)
    try_parts(model, objective, data.own)
    found = [probe.reading.of(sublayers, batch) for batch in data.own]
    counting = counted(zip(data.places, data.own, found, strict=True), progress or Silent())

    def share() -> None:
        collector.share_centres()
        probe.cotangents.draw_as_wide(data.ranks.lead(lambda: probe.cotangents.width))

    waiting = data.ranks.after_first(counting, share)
    for differentiated, run in groupby(waiting, key=lambda each: each[1].differentiated):
        start = 0 if differentiated else collector.partly_read_from()
        with gradients(model, sublayers, collector.observe, start=start, shelf=data.setting.shelf):
            for place, batch, of_batch in run:
                collector.begin(place, batch, of_batch)
                for predictions in predicted(model, objective, batch, precision=data.setting.precision):
                    _check_finite(predictions.values)
                    if predictions.values.requires_grad:
                        predictions.values.backward(probe.cotangents.of(predictions).to(predictions.values.dtype))
    collector.finish()
    return Statistics(sublayers=collector.statistics, rows=collector.rows)


def _check_finite(values: Tensor) -> None:
    """Raise NumericalError for predictions that say nothing; minus infinity says that something is impossible."""
    if bool((values.isnan() | values.isposinf()).any()):
        raise NumericalError(
            "the dense model predicts NaN or infinity on the calibration rows: its weights or inputs have such values, "
            "or it overflows; mend them, or calibrate on other rows"
        )
