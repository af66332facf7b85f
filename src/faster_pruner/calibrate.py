"""The one pass over the calibration set: batches in, statistics out.

One forward and one backward per batch give, for every sublayer at once and for every example, the mask gradient

    ``g[i, u] = sum over the tokens t of i and the columns c of u of X[t, c] (dL/dX)[t, c]``

the second moments ``A = X' X`` and ``G = (dL/dY)' (dL/dY)`` (the K-FAC factors), and the targets of the
recovery. All are sums over tokens or rows, so they can be split over devices and added up.

Moments settle long before the recovery's regressions do. So the backward may be confined to some of the batches
(`Batch.differentiated`); the others run forward only, for their targets, except through the last sublayers, of whose
tokens the loss reads only a few (in a classifier, CLS): those are cheap to differentiate and need every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from faster_pruner.batches import Batch
from faster_pruner.capture import Observation, PassSetting, gradients
from faster_pruner.families import Sublayer
from faster_pruner.linalg import SecondMoment
from faster_pruner.losses import Cotangent
from faster_pruner.precision import choose_precision, forward_in
from faster_pruner.progress import Progress, Silent, counted
from faster_pruner.storage import HiddenStates


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the method at hand will use; nothing else is computed.

    Attributes:
        mask_gradients: per-example mask gradients (first-order selection).
        moments: A and G (second-order selection).
        targets: dense outputs of every residual branch plus its residual stream (recovery against the dense model).
        producer_inputs: dense inputs of the producers (alignment).
    """

    mask_gradients: bool = False
    moments: bool = False
    targets: bool = False
    producer_inputs: bool = False


@dataclass(kw_only=True)
class SublayerStatistics:
    """Statistics of one sublayer.

    Attributes:
        mask_gradients: [N, U], in the original order of the rows; None when not needed.
        inputs: second moment of X over the tokens that the loss reads; None when not needed.
        output_gradients: second moment of dL/dY over the same tokens; None when not needed.
        rows: how many rows were differentiated here: those of the moments and the mask gradients.
        read: per batch [B, S] bool, the real tokens whose output the loss depends on (in the last layer of a
            classifier, CLS).
        targets: per batch [tokens read, d], in the precision of the pass; empty when not needed.
        producer_inputs: for each of the first batches, those that were differentiated here, [T, d] over the tokens of
            `producer_tokens`, in the precision of the pass; empty when not needed.
    """

    mask_gradients: Tensor | None = None
    inputs: SecondMoment | None = None
    output_gradients: SecondMoment | None = None
    rows: int = 0
    read: list[Tensor] = field(default_factory=list)
    targets: Sequence[Tensor] = ()
    producer_inputs: Sequence[Tensor] = ()


def tokens_of(x: Tensor, chosen: Tensor) -> Tensor:
    """[T, d]: the tokens of x [B, S, d] that are true in `chosen` [B, S]; a view when all are."""
    return x.flatten(0, 1) if bool(chosen.all()) else x[chosen]


def producer_tokens(sublayer: Sublayer, read: Tensor, real: Tensor) -> Tensor:
    """[B, S] bool: tokens whose producer inputs matter: all real ones where attention mixes them, else those read."""
    return real if sublayer.kind == "attention" else read


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of all sublayers, by name, and the logits [N, C] of the calibration rows."""

    sublayers: dict[str, SublayerStatistics]
    logits: Tensor
    rows: int

    def __getitem__(self, name: str) -> SublayerStatistics:
        return self.sublayers[name]


class _Collector:
    """Turns observations into statistics."""

    def __init__(
        self, sublayers: Sequence[Sublayer], rows: int, device: torch.device, needs: Needs, setting: PassSetting
    ) -> None:
        self.needs = needs
        self.sublayers = sublayers
        # hidden states of a bfloat16 pass are not known better than that
        self.kept_in = torch.bfloat16 if choose_precision(setting.precision, device) == "bfloat16" else torch.float32
        self.targets = {s.name: HiddenStates(setting.shelf) for s in sublayers}
        self.producer_inputs = {s.name: HiddenStates(setting.shelf) for s in sublayers}
        self.batch: Batch | None = None
        self.statistics = {
            s.name: SublayerStatistics(
                mask_gradients=torch.zeros(rows, s.units, device=device) if needs.mask_gradients else None,
                inputs=SecondMoment(s.columns, device) if needs.moments else None,
                output_gradients=SecondMoment(s.width, device) if needs.moments else None,
                targets=self.targets[s.name],
                producer_inputs=self.producer_inputs[s.name],
            )
            for s in sublayers
        }

    @torch.no_grad()
    def observe(self, sublayer: Sublayer, seen: Observation) -> None:
        """Fold one batch of one sublayer into its sums."""
        assert self.batch is not None
        own = self.statistics[sublayer.name]
        mask = self.batch.mask
        read = mask if seen.y_gradient is None else mask & seen.y_gradient.ne(0).any(dim=-1)
        own.read.append(read)
        if self.needs.targets:
            target = torch.empty_like(seen.residual, dtype=self.kept_in)
            torch.add(seen.residual.float(), seen.y, out=target)
            self.targets[sublayer.name].append(tokens_of(target, read))
        if seen.x_gradient is None or seen.y_gradient is None:
            return
        own.rows += self.batch.rows.numel()
        if own.mask_gradients is not None:
            product = (seen.x.float() * seen.x_gradient.float() * mask[:, :, None]).sum(dim=1)
            own.mask_gradients[self.batch.rows] = product.view(-1, sublayer.units, sublayer.unit_size).sum(dim=2)
        if own.inputs is not None and own.output_gradients is not None:
            own.inputs.add(tokens_of(seen.x, read))
            own.output_gradients.add(tokens_of(seen.y_gradient, read))
        if self.needs.producer_inputs:
            chosen = producer_tokens(sublayer, read, mask)
            self.producer_inputs[sublayer.name].append(tokens_of(seen.producer_input, chosen).to(self.kept_in))

    def finish(self) -> None:
        """Complete the sums; from here on statistics are only read."""
        for own in self.statistics.values():
            for moment in (own.inputs, own.output_gradients):
                if moment is not None:
                    moment.finish()

    def partly_read_from(self, batches: Sequence[Batch]) -> int:
        """The first of the last sublayers, of which the loss was seen to read less than half of the real tokens."""
        start = len(self.sublayers)
        while start > 0:
            seen = self.statistics[self.sublayers[start - 1].name].read
            real = sum(batch.mask.sum() for batch in batches[: len(seen)])
            if 2 * sum(read.sum() for read in seen) >= real:
                break
            start -= 1
        return start


def calibrate(
    model: nn.Module,
    sublayers: Sequence[Sublayer],
    batches: Sequence[Batch],
    cotangent: Cotangent,
    *,
    needs: Needs,
    setting: PassSetting | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Run the pass.

    Args:
        model: the dense model; called with each batch's inputs, it must return `.logits` [B, C].
        sublayers: in the order in which the model runs them.
        batches: the calibration set, those that are `differentiated` first.
        cotangent: dL/dlogits (see `losses`).
        needs: which statistics to gather.
        setting: precision and storage; float32 and in memory by default.
        progress: told after each batch.
    """
    rows = sum(batch.rows.numel() for batch in batches)
    device = next(model.parameters()).device
    setting = setting or PassSetting()
    collector = _Collector(sublayers, rows, device, needs, setting)
    logits: Tensor | None = None
    waiting = counted(batches, progress or Silent())
    for differentiated, run in groupby(waiting, key=lambda batch: batch.differentiated):
        start = 0 if differentiated else collector.partly_read_from(batches)
        with gradients(model, sublayers, collector.observe, start=start):
            for batch in run:
                collector.batch = batch
                with forward_in(setting.precision, device):
                    output: Tensor = model(**batch.inputs).logits
                if output.requires_grad:
                    output.backward(cotangent(output, batch).to(output.dtype))
                if logits is None:
                    logits = torch.zeros(rows, output.shape[-1], device=device)
                logits[batch.rows] = output.detach().float()
    assert logits is not None, "the calibration set is empty"
    collector.finish()
    return Statistics(sublayers=collector.statistics, logits=logits, rows=rows)
