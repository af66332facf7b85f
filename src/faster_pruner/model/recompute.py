"""Layers that are run again in the backward, instead of keeping for it what they computed.

Of each call of a layer only what it was given is kept (`torch.utils.checkpoint`); the same values come out the second
time, to the last bit, since nothing is random in eval mode. It takes another forward, and saves the graph of all layers
but one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from faster_pruner.model.staging import replace_forward

Found = TypeVar("Found")


@dataclass
class LayerCall:
    """One call of a layer.

    Attributes:
        again: whether it is being run for the second time.
        noted: what hooks inside of it leave in the first run for the second, in the order in which they ran.
        seen: how many of these the second run has come to.
    """

    again: bool = False
    noted: list[Any] = field(default_factory=list[Any])
    seen: int = 0

    def noted_as(self, value: Found) -> Found:
        """In the first run the value, which is noted; in the second what was noted at this place in the first."""
        if not self.again:
            self.noted.append(value)
            return value
        self.seen += 1
        return self.noted[self.seen - 1]


class Recomputed:
    """Layers of a model that are run again in backwards.

    Attributes:
        present: the call that is running, of a layer that is run twice; None outside of these.
    """

    def __init__(self) -> None:
        self.present: LayerCall | None = None
        # whether a layer leaves what it is given as it is; not known before it was called
        self._leaves: dict[nn.Module, bool] = {}

    @property
    def again(self) -> bool:
        """Whether what runs now is the second run of a layer."""
        return self.present is not None and self.present.again

    @property
    def to_come(self) -> bool:
        """Whether what runs now will be run again."""
        return self.present is not None and not self.present.again

    def attach(self, stack: ExitStack, layers: Iterable[nn.Module]) -> None:
        """Run these layers twice from here on; `stack` ends it."""
        for layer in layers:
            replace_forward(stack, layer, partial(self._twice, layer))

    def _twice(self, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward of a layer that keeps what it is given alone."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self.present is not None or not self._leaves.get(layer, True):
                return forward(*args, **kwargs)
            given = [*args, *kwargs.values()]
            if layer in self._leaves:
                return self._called(layer, forward, given, list(kwargs))
            # the second run would be given what the first has made of it
            copies = [value.clone() if isinstance(value, Tensor) else value for value in given]
            found = self._called(layer, forward, copies, list(kwargs))
            self._leaves[layer] = not any(value._version for value in copies if isinstance(value, Tensor))
            return found if self._leaves[layer] else forward(*args, **kwargs)

        return run

    def _called(self, layer: nn.Module, forward: Callable[..., Any], given: list[Any], names: list[str]) -> Any:
        """Call a layer; the last of what it is given by name."""
        call, plain = LayerCall(), len(given) - len(names)

        def inner(*values: Any) -> Any:
            # the second time with the hooks of the layer itself, which have run before the first
            asked = layer if call.again else forward
            return asked(*values[:plain], **dict(zip(names, values[plain:], strict=True)))

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return self._entered(call, again=False), self._entered(call, again=True)

        # all of it is run again: what hooks see at its end, too
        with set_checkpoint_early_stop(False):
            return checkpoint(inner, *given, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    @contextmanager
    def _entered(self, call: LayerCall, *, again: bool) -> Generator[None]:
        """A call is running."""
        before, self.present = self.present, call
        call.again, call.seen = again, 0
        try:
            yield
        finally:
            self.present = before
