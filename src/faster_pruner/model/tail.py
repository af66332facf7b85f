"""What a model does after its base, by itself: a head over the vocabulary, a scale, a soft cap.

The base's place is taken by hidden states that are known already, so that whatever the model's own code makes of them
can be made of some of them at a time. Whether that is the same is tried on a few tokens before it is relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from faster_pruner.errors import DataError
from faster_pruner.model.passes import called, inference, tensors_in

_STATES = "last_hidden_state"
# Tokens of one row that it is tried on, and how far values may be apart, relatively.
_TRIED, _TOLERANCE = 4, 1e-4


class Tail:
    """What a model does after its base.

    Args:
        model: of transformers, with a base inside.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._base: nn.Module = self._model.base_model
        self._kind: Callable[..., Any] = ModelOutput

    @staticmethod
    def of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tail | None:
        """The tail of a model, None where it has none that runs by itself; `inputs` are those of any batch."""
        if getattr(model, "base_model", model) is model:
            return None
        if model not in _PROVED:
            _PROVED[model] = _runs_by_itself(Tail(model), inputs)
        return Tail(model) if _PROVED[model] else None

    def states(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """[B, S, d]: what the base makes of a batch, with its graph. Raises DataError as `called` does."""
        kept: list[Tensor] = []
        run: Callable[..., Any] = self._base.forward

        def first_token_only(*args: Any, **kwargs: Any) -> Any:
            returned = run(*args, **kwargs)
            self._kind = type(returned)
            kept.append(returned[_STATES])
            return self._kind(**{**returned, _STATES: kept[-1][:, :1]})

        with _standing_in(self._base, first_token_only):
            called(self._model, inputs)
        return kept[-1]

    def after(self, states: Tensor, inputs: Mapping[str, Tensor]) -> Any:
        """What the model returns for states [B, T, d] of its base, for any T, after a call of `states`.

        Args:
            states: some of them.
            inputs: of any batch.
        """
        known = self._kind(**{_STATES: states})

        def nothing_new(*args: Any, **kwargs: Any) -> Any:
            del args, kwargs
            return known

        with _standing_in(self._base, nothing_new):
            return called(self._model, inputs)


_PROVED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def _standing_in(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Something else runs in the place of a module's forward."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


def _runs_by_itself(tail: Tail, inputs: Mapping[str, Tensor]) -> bool:
    """Whether states of a few tokens, taken one after the other, give what the model does."""
    model: Any = tail._model  # pyright: ignore[reportPrivateUsage]
    length = max(value.shape[1] for value in inputs.values() if value.ndim > 1)
    few = {
        key: value[:1, :_TRIED] if value.ndim > 1 and value.shape[1] == length else value[:1]
        for key, value in inputs.items()
    }
    try:
        with inference(model):
            expected = tensors_in(called(model, few))[0]
            states = tail.states(few)
            found = [tensors_in(tail.after(states[:, i : i + 1], few))[0] for i in range(states.shape[1])]
    except (AttributeError, DataError, LookupError, TypeError, ValueError):
        return False
    together = torch.cat(found, dim=1) if all(f.ndim == expected.ndim > 2 for f in found) else torch.empty(0)
    scale = max(1.0, float(expected.abs().max()))
    return together.shape == expected.shape and float((together - expected).abs().max()) <= _TOLERANCE * scale
