"""Looks at every output projection in a normal forward and backward. Beside `lockstep`, the only file with hooks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from faster_pruner.host.mapped import are_in_files
from faster_pruner.host.saved import Packed, Saved
from faster_pruner.host.spill import Shelf
from faster_pruner.model.passes import activation_gradients_only, by_row, first_input, without_cache
from faster_pruner.model.recompute import Recomputed
from faster_pruner.model.spec import Sublayer


class Bases:
    """What branches are added to, in one forward.

    * `add`: the residual stream, as the family says where to read it;
    * `parallel`: the residual stream plus the branches of the same layer that ran before;
    * `normed`: nothing, because the branch is normalised first: what it adds is not linear in it.

    A sublayer aims at ``base + y``: that is what goes on through the model, up to a normalisation.
    """

    def __init__(self, *, differentiable: bool = False) -> None:
        self._stream: dict[str, Tensor] = {}
        self._added: dict[str, Tensor] = {}
        self._differentiable = differentiable

    def of(self, sublayer: Sublayer) -> Tensor | None:
        """[B, S, d] for a sublayer whose projection has just been reached; None for `normed`."""
        if sublayer.spec.join == "normed":
            return None
        stream = self._stream.pop(sublayer.name)
        added = self._added.get(sublayer.prefix)
        return stream if added is None else stream + added

    def held(self) -> list[Tensor]:
        """Tensors that are held now."""
        return [*self._stream.values(), *self._added.values()]

    @staticmethod
    def attach(stack: ExitStack, model: nn.Module, sublayers: Sequence[Sublayer], present: Callable[[], Bases]) -> None:
        """Register the hooks that keep the bases of the forward that is running; `stack` removes them."""
        layers: dict[str, list[Sublayer]] = {}
        for sublayer in sublayers:
            if sublayer.spec.join != "normed":
                module = model.get_submodule(sublayer.stream_path)
                hook = _keep_stream(sublayer, present)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if sublayer.spec.join == "parallel":
                layers.setdefault(sublayer.prefix, []).append(sublayer)
        for prefix, branches in layers.items():
            for place, sublayer in enumerate(branches):
                hook = _keep_branch(prefix, present, first=place == 0, last=place == len(branches) - 1)
                stack.callback(sublayer.projection(model).register_forward_hook(hook).remove)

    def _keep(self, name: str, stream: Tensor) -> None:
        self._stream[name] = self._kept(stream)

    def _add(self, prefix: str, y: Tensor, *, first: bool, last: bool) -> None:
        """Add one branch to those of its layer; forget them after the last one."""
        if last:
            self._added.pop(prefix, None)
        else:
            # a copy: the model may add something to y where it lies
            self._added[prefix] = self._kept(y).clone() if first else self._added[prefix] + self._kept(y)

    def _kept(self, tensor: Tensor) -> Tensor:
        """As it is where gradients go through it."""
        return tensor if self._differentiable else tensor.detach()


def _keep_stream(sublayer: Sublayer, present: Callable[[], Bases]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        present()._keep(sublayer.name, first_input(args, kwargs))  # pyright: ignore[reportPrivateUsage]

    return hook


def _keep_branch(prefix: str, present: Callable[[], Bases], *, first: bool, last: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        del module, args
        present()._add(prefix, y, first=first, last=last)  # pyright: ignore[reportPrivateUsage]

    return hook


@dataclass(frozen=True)
class Observation:
    """One call of one output projection in one forward and backward, with tokens as the model lays them out.

    Attributes:
        x: [B, S, n] input of the projection.
        x_gradient: [B, S, n]; None where only the forward was watched.
        y: [B, S, d] what the projection puts out.
        y_gradient: [B, S, d]; None where only the forward was watched.
        base: [B, S, d] what the branch is added to, None when it is not added as it is (see `Bases`).
        source: [B, S, d] input of the producers that can be aimed, None when there are none.
    """

    x: Tensor
    x_gradient: Tensor | None
    y: Tensor
    y_gradient: Tensor | None
    base: Tensor | None
    source: Tensor | None

    def by_row(self, rows: int) -> Observation:
        """The same with B rows, however the model lays out their tokens (see `passes.by_row`)."""
        values = {name: None if value is None else by_row(value, rows) for name, value in vars(self).items()}
        return Observation(**values)  # pyright: ignore[reportArgumentType]


class _Call:
    """What is known so far of one call of one projection.

    Args:
        saved: keeps it until the backward.
    """

    def __init__(self, saved: Saved | None) -> None:
        self._saved = saved
        self._known: dict[str, Tensor | Packed] = {}

    def keep(self, name: str, value: Tensor | None) -> None:
        """Keep one of the values of an `Observation`."""
        if value is not None:
            self._known[name] = value.detach() if self._saved is None else self._saved.pack(value)

    def observation(self, x_gradient: Tensor | None) -> Observation:
        """All of it, which is then let go of: the graph holds on to its hooks."""
        found = {name: kept.unpacked() if isinstance(kept, Packed) else kept for name, kept in self._known.items()}
        self._known.clear()
        return Observation(
            x=found["x"],
            x_gradient=x_gradient,
            y=found["y"],
            y_gradient=found.get("y_gradient"),
            base=found.get("base"),
            source=found.get("source"),
        )


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """What the hooks of all sublayers have in common.

    Attributes:
        bases: of the forward that is running.
        report: is given each sublayer with what was seen of it.
        arrived: is given each sublayer with x [B, S, n] when the forward reaches its projection.
        saved: keeps what was seen until the backward; None where it stays as it is.
        layers: those that are run again in the backward: then it is seen, and not kept before.
    """

    bases: Bases
    report: Callable[[Sublayer, Observation], None]
    arrived: Callable[[Sublayer, Tensor], None]
    saved: Saved | None
    layers: Recomputed


class _Watch:
    """Hooks of one sublayer for `gradients`."""

    def __init__(self, sublayer: Sublayer, common: _Watched, *, differentiated: bool) -> None:
        self.sublayer, self.common = sublayer, common
        self.differentiated = differentiated
        # nothing is kept for long where no backward follows
        self.saved = common.saved if differentiated else None
        self.source: Tensor | None = None
        self.running: _Call | None = None

    def attach(self, stack: ExitStack, model: nn.Module) -> None:
        """Register the hooks; `stack` removes them."""
        if self.sublayer.aimed:
            producer = model.get_submodule(self.sublayer.aimed[0].path)
            stack.callback(producer.register_forward_pre_hook(self.before_producer).remove)
        projection = self.sublayer.projection(model)
        stack.callback(projection.register_forward_pre_hook(self.before).remove)
        stack.callback(projection.register_forward_hook(self.after).remove)

    def before_producer(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the producers' input."""
        del module
        self.source = args[0].detach()

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Keep the input. The graph starts where no differentiated sublayer has a part in it."""
        del module
        x: Tensor = args[0]
        layers = self.common.layers
        if not layers.again:
            self.common.arrived(self.sublayer, x)
        if self.differentiated:
            x = x if x.requires_grad else x.detach().requires_grad_()
        base, source = self.common.bases.of(self.sublayer), self.source
        self.source = None
        call = _Call(self.saved) if layers.present is None else layers.present.noted_as(_Call(None))
        self.running = call
        if self._looks():
            for name, value in (("x", x), ("base", base), ("source", source)):
                call.keep(name, value)
        if self.differentiated and not layers.again:
            # the last gradient of a call to come
            x.register_hook(partial(self.finish, call))
        return (x, *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        """Keep the output; the model goes on with a copy, because it may add something to it where it lies."""
        del module, args
        call, self.running = self.running, None
        assert call is not None
        again = self.common.layers.again
        if self._looks():
            call.keep("y", y)
        if not self.differentiated:
            if not again:
                self.finish(call, None)
            return y
        if not again:
            y.register_hook(partial(call.keep, "y_gradient"))
        return y.clone()

    def _looks(self) -> bool:
        """Whether values are kept now: of what is differentiated not before the last run, right before their use."""
        return not (self.differentiated and self.common.layers.to_come)

    def finish(self, call: _Call, x_gradient: Tensor | None) -> None:
        """Everything is known of a call now: report it."""
        self.common.report(self.sublayer, call.observation(x_gradient))


def _nothing(sublayer: Sublayer, x: Tensor) -> None:
    """Nobody listens."""


@contextmanager
def gradients(
    model: nn.Module,
    sublayers: Sequence[Sublayer],
    report: Callable[[Sublayer, Observation], None],
    *,
    start: int = 0,
    arrived: Callable[[Sublayer, Tensor], None] | None = None,
    shelf: Shelf | None = None,
) -> Generator[None]:
    """Report every call of every output projection, once per forward and backward; parameters get no gradients.

    The graph starts at the input of the output projection of ``sublayers[start]``. It and the later ones are reported
    in the backward, last sublayer first, as far as it gets to them; the earlier ones, and those without a unit, in the
    forward, without gradients.

    Args:
        model: whose forward and backward the caller runs inside.
        sublayers: in the order in which the model runs them.
        report: is given each sublayer with what was seen of it.
        start: index of the first sublayer that is differentiated.
        arrived: is given each sublayer with x [B, S, n] when the forward reaches its projection.
        shelf: says how much of what a forward leaves for its backward stays in memory where weights are kept in files;
            None for nothing of it. Elsewhere all of it does.
    """
    saved = Saved(shelf or Shelf(0), [*model.parameters(), *model.buffers()]) if are_in_files() else None
    bases, layers = Bases(), Recomputed()
    common = _Watched(bases=bases, report=report, arrived=arrived or _nothing, saved=saved, layers=layers)
    watches = [
        _Watch(sublayer, common, differentiated=place >= start and sublayer.units > 0)
        for place, sublayer in enumerate(sublayers)
    ]
    with ExitStack() as stack:
        stack.enter_context(activation_gradients_only(model))
        if saved is not None:
            stack.enter_context(saved.graph())
            # keys and values that a layer keeps would be added to by its second run
            stack.enter_context(without_cache(model))
            paths = dict.fromkeys(watch.sublayer.prefix.removesuffix(".") for watch in watches if watch.differentiated)
            layers.attach(stack, [model.get_submodule(path) for path in paths])
        Bases.attach(stack, model, sublayers, lambda: bases)
        for watch in watches:
            watch.attach(stack, model)
        yield


@contextmanager
def streams(model: nn.Module, sublayers: Sequence[Sublayer]) -> Generator[dict[str, Tensor]]:
    """What goes on through the model after its branches, up to a normalisation, with its graph.

    Args:
        model: whose forwards the caller runs inside.
        sublayers: whose branches are looked at.

    Yields:
        By name of sublayer what the last forward left there, [B, S, d] as the model lays tokens out: the stream plus
        the branch, or the branch alone where it is normalised before it is added.
    """
    bases, found = Bases(differentiable=True), dict[str, Tensor]()

    def keep(sublayer: Sublayer) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            del module, args
            base = bases.of(sublayer)
            found[sublayer.name] = y if base is None else base + y
            # the model goes on with a copy, because it may add something to it where it lies
            return y.clone()

        return hook

    with ExitStack() as stack:
        for sublayer in sublayers:
            stack.callback(sublayer.projection(model).register_forward_hook(keep(sublayer)).remove)
        Bases.attach(stack, model, sublayers, lambda: bases)
        yield found
