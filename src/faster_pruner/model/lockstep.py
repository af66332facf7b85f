"""Suspended forwards: a whole sequential recovery costs one forward of the model.

One forward per batch, all of them suspended together at the same output projection. Between two sublayers the caller
may change the weights of the projection that everyone waits at. No layer is called from outside, no attention mask is
rebuilt, nothing is run twice, whatever the family looks like.

The suspended forwards are greenlets (stackful coroutines in one OS thread, so torch's thread pools and modes are
shared).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeGuard

from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from faster_pruner.data.batches import Batch
from faster_pruner.host.spill import Parking
from faster_pruner.model.gradients import Bases
from faster_pruner.model.passes import PassSetting, by_row, inference, masked_by
from faster_pruner.model.precision import forward_in
from faster_pruner.model.spec import Sublayer

# How deep tensors are looked for in the values that a suspended forward holds.
_DEPTH = 3


@dataclass(frozen=True)
class Arrival:
    """One batch waiting at one output projection.

    Attributes:
        batch: index of the batch.
        x: [B, S, n], the projection's input.
        base: [B, S, d], what the branch is added to; None when it is not added as it is (see `Bases`).
    """

    batch: int
    x: Tensor
    base: Tensor | None


class Lockstep:
    """Suspended forwards of one model over several batches; made by `lockstep`."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], setting: PassSetting) -> None:
        self._model = model
        self._setting = setting
        self._device = batches[0].rows.device
        self._parking = Parking(setting.shelf)
        self._main = getcurrent()
        self._bases = [Bases() for _ in batches]
        self._running = 0
        self._forwards = [greenlet(self._forward) for _ in batches]
        self._batches = batches
        self._held_per_seen = 1.0
        self.returned: list[Any] = [None] * len(batches)

    def attach(
        self, stack: ExitStack, sublayers: Sequence[Sublayer], masks: Mapping[str, Tensor], *, producers: bool
    ) -> None:
        """Register the hooks; `stack` removes them."""
        for sublayer in sublayers:
            if producers and sublayer.aimed:
                first = self._model.get_submodule(sublayer.aimed[0].path)
                stack.callback(first.register_forward_pre_hook(self._pause_at(_entry(sublayer))).remove)
        Bases.attach(stack, self._model, sublayers, lambda: self._bases[self._running])
        for sublayer in sublayers:
            projection = sublayer.projection(self._model)
            stack.callback(projection.register_forward_pre_hook(self._pause_at(sublayer.name)).remove)
            if sublayer.name in masks:
                mask = masks[sublayer.name].repeat_interleave(sublayer.unit_size)
                stack.callback(projection.register_forward_pre_hook(masked_by(mask)).remove)

    def arrivals(self, sublayer: Sublayer) -> Iterator[Arrival]:
        """Let each batch in turn run up to the output projection of `sublayer` and wait there.

        Sublayers must be visited in the order in which the model runs them.
        """
        for index in range(len(self._batches)):
            name, x = self._resume(index)
            assert name == sublayer.name, f"expected the model to reach {sublayer.name}, it reached {name}"
            base = self._bases[index].of(sublayer)
            rows = self._rows(index)
            yield Arrival(index, by_row(x, rows), None if base is None else by_row(base, rows))
            self._park(index, [x] if base is None else [x, base])

    def skip(self, sublayer: Sublayer) -> None:
        """Let every batch run up to the output projection of `sublayer`; nobody looks."""
        for _ in self.arrivals(sublayer):
            pass

    def entries(self, sublayer: Sublayer) -> Iterator[tuple[int, Tensor]]:
        """Let each batch run up to the producers of `sublayer`: (index of the batch, their input [B, S, d]).

        Only for a lockstep that stops at producers, and only for a sublayer that has any to aim.
        """
        for index in range(len(self._batches)):
            name, x = self._resume(index)
            assert name == _entry(sublayer), f"expected the model to reach {_entry(sublayer)}, it reached {name}"
            yield index, by_row(x, self._rows(index))
            self._park(index, [x])

    def _rows(self, index: int) -> int:
        """B of one batch."""
        return self._batches[index].rows.numel()

    def skip_entry(self, sublayer: Sublayer) -> None:
        """Let every batch run up to the producers of `sublayer`; nobody looks."""
        for _ in self.entries(sublayer):
            pass

    def finish(self) -> list[Any]:
        """Let every batch run to its end: what the model returns, one per batch."""
        for index in range(len(self._batches)):
            name, returned = self._resume(index)
            assert name == "", f"a batch still waits at {name}"
            self.returned[index] = returned
        return self.returned

    def close(self) -> None:
        """Unwind the forwards that are still suspended."""
        for forward in self._forwards:
            if forward and not forward.dead:
                forward.throw(GreenletExit)

    def _resume(self, index: int) -> tuple[str, Any]:
        """Continue one batch up to its next stop: (name of the stop, x), or ("", what the model returns) at the end."""
        self._running = index
        self._parking.fetch(index)
        forward = self._forwards[index]
        with forward_in(self._setting.precision, self._device):
            return forward.switch() if forward else forward.switch(index)

    def _park(self, index: int, seen: list[Tensor]) -> None:
        """Let go of the memory of a suspended forward if there is too little.

        What the first batch holds at a stop, measured against what was `seen` of it, tells what the others hold.
        """
        size = sum(tensor.nbytes for tensor in seen)
        if index == 0:
            held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in self._held(0)}
            self._held_per_seen = max(1.0, sum(held.values()) / max(1, size))
        self._parking.park(index, int(size * self._held_per_seen), lambda: self._held(index))

    def _held(self, index: int) -> list[Tensor]:
        """Every tensor that only the suspended forward of one batch holds: its locals, and what lies inside them."""
        others = [*self._model.parameters(), *self._model.buffers(), *self._batches[index].inputs.values()]
        others += [value for module in self._model.modules() for value in vars(module).values() if _is_tensor(value)]
        shared = {tensor.untyped_storage().data_ptr() for tensor in others}
        found = [tensor for value in _locals(self._forwards[index].gr_frame) for tensor in _tensors(value, _DEPTH)]
        found += self._bases[index].held()
        return [tensor for tensor in found if tensor.untyped_storage().data_ptr() not in shared]

    def _forward(self, index: int) -> tuple[str, Any]:
        return "", self._model(**self._batches[index].inputs)

    def _pause_at(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def pause(module: nn.Module, args: tuple[Any, ...]) -> None:
            del module
            self._main.switch((name, args[0]))

        return pause


def _entry(sublayer: Sublayer) -> str:
    """Name of the stop at the producers of a sublayer."""
    return f"{sublayer.name} producers"


def _locals(frame: FrameType | None) -> Iterator[Any]:
    """Values of the local variables of a frame and of those that called it."""
    while frame is not None:
        yield from frame.f_locals.values()
        frame = frame.f_back


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is a tensor with memory of its own."""
    return isinstance(value, Tensor) and not value.is_meta


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    """Tensors in a value: itself, or what lies in a tuple, list or dictionary."""
    if _is_tensor(value):
        yield value
    elif depth and isinstance(value, dict | tuple | list):
        inside: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for each in inside:
            yield from _tensors(each, depth - 1)


@contextmanager
def lockstep(
    model: nn.Module,
    sublayers: Sequence[Sublayer],
    batches: Sequence[Batch],
    *,
    producers: bool = False,
    masks: Mapping[str, Tensor] | None = None,
    setting: PassSetting | None = None,
) -> Generator[Lockstep]:
    """Suspend one forward per batch at every output projection of `sublayers`, and at their producers if asked.

    Args:
        model: any model that the batches' inputs can be given to.
        sublayers: in the order in which the model runs them, also those without a unit left.
        batches: of the calibration set.
        producers: also stop at the first producer of every sublayer that has some to aim.
        masks: by name of sublayer [U], 0 for units that the model goes on without; whoever stops there sees them all.
        setting: precision and storage.
    """
    with ExitStack() as stack:
        stack.enter_context(inference(model))
        run = Lockstep(model, batches, setting or PassSetting())
        stack.callback(run.close)
        run.attach(stack, sublayers, masks or {}, producers=producers)
        yield run
