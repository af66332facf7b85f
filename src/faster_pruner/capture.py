"""The only file that registers hooks, each in a `with`.

Two ways to look inside a model:

* `lockstep`: one forward per batch, all of them suspended together at the same output projection. Between two
  sublayers the caller may
  change the weights of the projection that everyone waits at. So a whole sequential recovery costs exactly one forward
  of the
  model, whatever the family looks like: no layer is called from outside, no attention mask is rebuilt, nothing is run
  twice.
  The suspended forwards are greenlets (stackful coroutines in one OS thread, so torch's thread pools and modes are
  shared).
* `gradients`: inputs and outputs of every output projection in a normal forward, with their gradients in the backward.

Nothing here depends on the family beyond the paths in its table row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from faster_pruner.batches import Batch
from faster_pruner.families import Sublayer
from faster_pruner.options import PrecisionName
from faster_pruner.precision import forward_in
from faster_pruner.storage import Parking, Shelf


@dataclass(frozen=True, kw_only=True)
class PassSetting:
    """How passes over the calibration set are run.

    Attributes:
        precision: of the forwards.
        shelf: where hidden states go; by default they stay in memory.
    """

    precision: PrecisionName = "float32"
    shelf: Shelf = field(default_factory=lambda: Shelf(sys.maxsize))


@dataclass(frozen=True)
class Arrival:
    """One batch waiting at one output projection.

    Attributes:
        batch: index of the batch.
        x: [B, S, n], the projection's input.
        residual: [B, S, d], the residual stream that the branch is added to.
    """

    batch: int
    x: Tensor
    residual: Tensor


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode; the training flag of every module is put back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def inference(model: nn.Module) -> Generator[None]:
    """Eval mode without gradients; everything is put back afterwards."""
    with _evaluating(model), torch.no_grad():
        yield


@contextmanager
def activation_gradients_only(model: nn.Module) -> Generator[None]:
    """Eval mode in which no parameter asks for a gradient; everything is put back afterwards."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with _evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter, requires_grad in asked:
            parameter.requires_grad_(requires_grad)


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """First input of a module call, however it was passed."""
    value = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(value, Tensor)
    return value


class Lockstep:
    """Suspended forwards of one model over several batches; made by `lockstep`."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], setting: PassSetting) -> None:
        self._model = model
        self._setting = setting
        self._device = batches[0].rows.device
        self._parking = Parking(setting.shelf)
        self._main = getcurrent()
        self._residual: dict[int, Tensor] = {}
        self._running = 0
        self._forwards = [greenlet(self._forward) for _ in batches]
        self._batches = batches
        self.outputs: list[Any] = [None] * len(batches)

    def attach(self, stack: ExitStack, sublayers: Sequence[Sublayer], *, producers: bool) -> None:
        """Register the hooks; `stack` removes them."""
        for sublayer in sublayers:
            if producers and sublayer.units:
                first = self._model.get_submodule(sublayer.producer_paths[0])
                stack.callback(first.register_forward_pre_hook(self._pause_at(_entry(sublayer))).remove)
            residual = self._model.get_submodule(sublayer.residual_path)
            stack.callback(residual.register_forward_pre_hook(self._keep_residual, with_kwargs=True).remove)
            output = sublayer.output_of(self._model)
            stack.callback(output.register_forward_pre_hook(self._pause_at(sublayer.name)).remove)

    def arrivals(self, sublayer: Sublayer) -> Iterator[Arrival]:
        """Let each batch in turn run up to the output projection of `sublayer` and wait there.

        Sublayers must be visited in the order in which the model runs them.
        """
        for index in range(len(self._batches)):
            name, x = self._resume(index)
            assert name == sublayer.name, f"expected the model to reach {sublayer.name}, it reached {name}"
            residual = self._residual.pop(index)
            yield Arrival(index, x, residual)
            self._parking.park(index, (x, residual))

    def skip(self, sublayer: Sublayer) -> None:
        """Let every batch run up to the output projection of `sublayer`; nobody looks."""
        for _ in self.arrivals(sublayer):
            pass

    def skip_entry(self, sublayer: Sublayer) -> None:
        """Let every batch run up to the producers of `sublayer`; nobody looks."""
        for _ in self.entries(sublayer):
            pass

    def entries(self, sublayer: Sublayer) -> Iterator[tuple[int, Tensor]]:
        """Let each batch run up to the producers of `sublayer`: (index of the batch, their input [B, S, d]).

        Only for a lockstep that stops at producers, and only for a sublayer that has units.
        """
        for index in range(len(self._batches)):
            name, x = self._resume(index)
            assert name == _entry(sublayer), f"expected the model to reach {_entry(sublayer)}, it reached {name}"
            yield index, x
            self._parking.park(index, (x,))

    def finish(self) -> list[Any]:
        """Let every batch run to its end: the model's outputs, one per batch."""
        for index in range(len(self._batches)):
            name, output = self._resume(index)
            assert name == "", f"a batch still waits at {name}"
            self.outputs[index] = output
        return self.outputs

    def close(self) -> None:
        """Unwind the forwards that are still suspended."""
        for forward in self._forwards:
            if forward and not forward.dead:
                forward.throw(GreenletExit)

    def _resume(self, index: int) -> tuple[str, Any]:
        """Continue one batch up to its next stop: (name of the sublayer, x), or ("", output) at the end."""
        self._running = index
        self._parking.fetch(index)
        forward = self._forwards[index]
        with forward_in(self._setting.precision, self._device):
            return forward.switch() if forward else forward.switch(index)

    def _forward(self, index: int) -> tuple[str, Any]:
        return "", self._model(**self._batches[index].inputs)

    def _keep_residual(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        self._residual[self._running] = _first_input(args, kwargs)

    def _pause_at(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def pause(module: nn.Module, args: tuple[Any, ...]) -> None:
            del module
            self._main.switch((name, args[0]))

        return pause


def _entry(sublayer: Sublayer) -> str:
    """Name of the stop at the producers of a sublayer."""
    return f"{sublayer.name} producers"


@contextmanager
def lockstep(
    model: nn.Module,
    sublayers: Sequence[Sublayer],
    batches: Sequence[Batch],
    *,
    producers: bool = False,
    setting: PassSetting | None = None,
) -> Generator[Lockstep]:
    """Suspend one forward per batch at every output projection of `sublayers`, and at their producers if asked."""
    with ExitStack() as stack:
        stack.enter_context(inference(model))
        run = Lockstep(model, batches, setting or PassSetting())
        stack.callback(run.close)
        run.attach(stack, sublayers, producers=producers)
        yield run


@dataclass(frozen=True)
class Observation:
    """One output projection in one forward and backward.

    Attributes:
        x: [B, S, n] input of the projection.
        x_gradient: [B, S, n]; None where only the forward was watched.
        y: [B, S, d] output of the projection.
        y_gradient: [B, S, d]; None where only the forward was watched.
        residual: [B, S, d] residual stream that the branch is added to.
        producer_input: [B, S, d] input of the producers.
    """

    x: Tensor
    x_gradient: Tensor | None
    y: Tensor
    y_gradient: Tensor | None
    residual: Tensor
    producer_input: Tensor


class _Watch:
    """Hooks of one sublayer for `gradients`."""

    def __init__(
        self,
        sublayer: Sublayer,
        report: Callable[[Sublayer, Observation], None],
        *,
        differentiated: bool,
        starts_graph: bool,
    ) -> None:
        self.sublayer, self.report = sublayer, report
        self.differentiated, self.starts_graph = differentiated, starts_graph
        self.x: Tensor | None = None
        self.y: Tensor | None = None
        self.residual: Tensor | None = None
        self.producer_input: Tensor | None = None
        self.y_gradient: Tensor | None = None

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Register the hooks."""
        residual = model.get_submodule(self.sublayer.residual_path)
        producer = model.get_submodule(self.sublayer.producer_paths[0])
        output = self.sublayer.output_of(model)
        return [
            producer.register_forward_pre_hook(self.before_producer),
            residual.register_forward_pre_hook(self.before_branch, with_kwargs=True),
            output.register_forward_pre_hook(self.before),
            output.register_forward_hook(self.after),
        ]

    def before_branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the residual stream."""
        del module
        self.residual = _first_input(args, kwargs).detach()

    def before_producer(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the producers' input."""
        del module
        self.producer_input = args[0].detach()

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Keep the input; the first sublayer's input is where the graph starts."""
        del module
        x = args[0].detach().requires_grad_() if self.starts_graph else args[0]
        if self.differentiated:
            x.register_hook(self.input_gradient)
        self.x = x.detach()
        return (x, *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Keep the output."""
        del module, args
        self.y = output.detach()
        if self.differentiated:
            output.register_hook(self.output_gradient)
        else:
            self.finish(None)

    def output_gradient(self, gradient: Tensor) -> None:
        """Keep dL/dy."""
        self.y_gradient = gradient

    def input_gradient(self, gradient: Tensor) -> None:
        """Keep dL/dx, the last to come."""
        self.finish(gradient)

    def finish(self, x_gradient: Tensor | None) -> None:
        """Everything is known now: report and let go of it."""
        assert self.x is not None
        assert self.y is not None
        assert self.residual is not None
        assert self.producer_input is not None
        seen = Observation(self.x, x_gradient, self.y, self.y_gradient, self.residual, self.producer_input)
        self.x = self.y = self.y_gradient = self.residual = self.producer_input = None
        self.report(self.sublayer, seen)


@contextmanager
def gradients(
    model: nn.Module, sublayers: Sequence[Sublayer], report: Callable[[Sublayer, Observation], None], *, start: int = 0
) -> Generator[None]:
    """Report every output projection once per forward and backward; parameters get no gradients.

    The graph starts at the input of the output projection of ``sublayers[start]``. It and the later ones are reported
    in the backward, last sublayer first; the earlier ones in the forward, without gradients.
    """
    with ExitStack() as stack:
        stack.enter_context(activation_gradients_only(model))
        for place, sublayer in enumerate(sublayers):
            watch = _Watch(sublayer, report, differentiated=place >= start, starts_graph=place == start)
            for handle in watch.attach(model):
                stack.callback(handle.remove)
        yield
