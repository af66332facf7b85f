"""Suspended forwards: a whole sequential recovery costs one forward of the model.

One forward per batch, all of them suspended together at the same output projection. Between two sublayers the caller
may change the weights of the projection that everyone waits at. No layer is called from outside, no attention mask is
rebuilt, nothing is run twice, whatever the family looks like.

A branch that is to be fitted by more than one look at it can be run again by itself up to its projection, from what its
module was called with (`Lockstep.again`), and the forwards go on with what it makes then (`Lockstep.renew`).

The suspended forwards are greenlets (stackful coroutines in one OS thread, so torch's thread pools and modes are
shared).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from types import FrameType
from typing import Any, TypeGuard

from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from faster_pruner.data.batches import Batch, chosen_rows
from faster_pruner.host.spill import Parking
from faster_pruner.model.gradients import Bases
from faster_pruner.model.passes import PassSetting, by_row, inference, masked_by, without_cache
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


class _Reached(Exception):
    """A branch that was run again got to its projection."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


# What a module was called with.
_Call = tuple[tuple[Any, ...], dict[str, Any]]


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
        self._sizes = [0] * len(batches)
        self._calls: list[dict[str, _Call]] = [{} for _ in batches]
        self._renewed: list[Sublayer | None] = [None] * len(batches)
        self._asked = ""
        self.returned: list[Any] = [None] * len(batches)

    def attach(
        self,
        stack: ExitStack,
        sublayers: Sequence[Sublayer],
        masks: Mapping[str, Tensor],
        *,
        producers: bool,
        branches: bool,
    ) -> None:
        """Register the hooks; `stack` removes them."""
        for sublayer in sublayers if branches else ():
            module = self._model.get_submodule(branch_path(sublayer))
            # ahead of the module's own hooks, which run again, too
            handle = module.register_forward_pre_hook(self._keep_call(sublayer.name), with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        for sublayer in sublayers:
            if producers and sublayer.aimed:
                first = self._model.get_submodule(sublayer.aimed[0].path)
                stack.callback(first.register_forward_pre_hook(self._pause_at(_entry(sublayer))).remove)
        Bases.attach(stack, self._model, sublayers, lambda: Bases() if self._asked else self._bases[self._running])
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

    def again(self, index: int, sublayer: Sublayer, places: Tensor | None = None) -> Tensor:
        """[B, S, n]: the projection's input, from running the branch that a batch waits in again with today's weights.

        Only for a lockstep with branches, and for the sublayer that everyone waits at. Gradients go as far as what the
        branch is called with.

        Args:
            index: of the batch.
            sublayer: whose branch it is.
            places: of some of the rows [B'], which every tensor with B rows is cut down to; None for all.

        Raises:
            LookupError: its module was not called in the forward, or does not get to the projection.
        """
        args, kwargs = self._calls[index][sublayer.name]
        rows = self._rows(index)
        if places is not None:
            args, kwargs = (chosen_rows(value, places, rows) for value in (args, kwargs))
            rows = places.numel()
        self._asked = sublayer.name
        try:
            with forward_in(self._setting.precision, self._device):
                self._model.get_submodule(branch_path(sublayer))(*args, **kwargs)
        except _Reached as reached:
            return by_row(reached.x, rows)
        finally:
            self._asked = ""
        raise LookupError(f"the branch does not get to {sublayer.parts.projection}")

    def renew(self, sublayer: Sublayer) -> None:
        """Let every batch go on with what the branch makes that it waits in, with today's weights."""
        self._renewed = [sublayer] * len(self._batches)

    @property
    def renewing(self) -> bool:
        """Whether they will, when they go on."""
        return any(sublayer is not None for sublayer in self._renewed)

    @contextmanager
    def awake(self, index: int) -> Generator[None]:
        """Bring back what a suspended forward holds, for as long as somebody runs its branch again."""
        self._parking.fetch(index)
        try:
            yield
        finally:
            self._parking.park(index, self._sizes[index], lambda: self._held(index))

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
        """Unwind the forwards that are still suspended, and let go of what they held."""
        for forward in self._forwards:
            if forward and not forward.dead:
                forward.throw(GreenletExit)
        self._parking.clear()

    def _resume(self, index: int) -> tuple[str, Any]:
        """Continue one batch up to its next stop: (name of the stop, x), or ("", what the model returns) at the end."""
        self._running = index
        self._parking.fetch(index)
        renewed, self._renewed[index] = self._renewed[index], None
        x = None if renewed is None else self.again(index, renewed)
        forward = self._forwards[index]
        with forward_in(self._setting.precision, self._device):
            return forward.switch(x) if forward else forward.switch(index)

    def _park(self, index: int, seen: list[Tensor]) -> None:
        """Let go of the memory of a suspended forward if there is too little.

        What the first batch holds at a stop, measured against what was `seen` of it, tells what the others hold.
        """
        size = sum(tensor.nbytes for tensor in seen)
        if index == 0:
            held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in self._held(0)}
            self._held_per_seen = max(1.0, sum(held.values()) / max(1, size))
        self._sizes[index] = int(size * self._held_per_seen)
        self._parking.park(index, self._sizes[index], lambda: self._held(index))

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

    def _keep_call(self, name: str) -> Callable[..., None]:
        """A hook that keeps what the module of a branch is called with."""

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            if not self._asked:
                self._calls[self._running][name] = args, kwargs

        return keep

    def _pause_at(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        """A hook that suspends the forward, and gives the module another input if it is told to."""

        def pause(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            del module
            if self._asked:
                if self._asked == name:
                    raise _Reached(args[0])
                return None
            x = self._main.switch((name, args[0]))
            self._calls[self._running].pop(name, None)
            return None if x is None else (x.view_as(args[0]), *args[1:])

        return pause


def branch_path(sublayer: Sublayer) -> str:
    """Path of the innermost module that holds a sublayer's projection and all of its producers."""
    paths = [sublayer.parts.projection, *(producer.path for producer in sublayer.parts.producers)]
    steps = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps))


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
    branches: bool = False,
    masks: Mapping[str, Tensor] | None = None,
    setting: PassSetting | None = None,
) -> Generator[Lockstep]:
    """Suspend one forward per batch at every output projection of `sublayers`, and at their producers if asked.

    Args:
        model: any model that the batches' inputs can be given to.
        sublayers: in the order in which the model runs them, also those without a unit left.
        batches: of the calibration set.
        producers: also stop at the first producer of every sublayer that has some to aim.
        branches: also keep what their modules are called with, so that they can be run again.
        masks: by name of sublayer [U], 0 for units that the model goes on without; whoever stops there sees them all.
        setting: precision and storage.
    """
    with ExitStack() as stack:
        stack.enter_context(inference(model))
        stack.enter_context(without_cache(model))
        run = Lockstep(model, batches, setting or PassSetting())
        stack.callback(run.close)
        run.attach(stack, sublayers, masks or {}, producers=producers, branches=branches)
        yield run
