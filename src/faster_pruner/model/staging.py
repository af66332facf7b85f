"""Layers whose weights stay on the CPU, in files for instance, while the model computes on a GPU that cannot hold them.

Each module of such a layer fetches its own weights for the time of its call. What lies outside of the layers
(embeddings, norms, heads, and all buffers) is on the GPU for good. Weights are where they always were, to whoever reads
or overwrites them between calls: accelerate's own hooks leave empty tensors there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def stage(model: nn.Module, layers: Iterable[str], device: torch.device) -> None:
    """Move a model to `device`, in place, all but the parameters of some layers.

    Args:
        model: on the CPU.
        layers: their paths.
        device: where it is to compute from now on.
    """
    stay = {id(parameter) for path in set(layers) for parameter in model.get_submodule(path).parameters()}
    _move(model, device, [parameter for parameter in model.parameters() if id(parameter) not in stay])


@torch.no_grad()
def stage_like(model: nn.Module, other: nn.Module, device: torch.device) -> None:
    """Move a model from the CPU to `device`, in place, all but the parameters that another one has not there."""
    away = {name for name, parameter in other.named_parameters() if parameter.device != device}
    _move(model, device, [parameter for name, parameter in model.named_parameters() if name not in away])


def _move(model: nn.Module, device: torch.device, parameters: Iterable[nn.Parameter]) -> None:
    """Move some parameters of a model, and all of its buffers."""
    # held until all have moved, or a new one might be where an old one was
    before = [tensor for tensor in (*parameters, *model.buffers()) if tensor.device != device]
    moved = {id(tensor): _moved(tensor, device) for tensor in before}
    for module in model.modules():
        for name, tensor in [*vars(module)["_parameters"].items(), *vars(module)["_buffers"].items()]:
            if id(tensor) in moved:
                setattr(module, name, moved[id(tensor)])


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    there = tensor.detach().to(device)
    return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there


@contextmanager
def fetching(model: nn.Module, device: torch.device) -> Generator[None]:
    """Modules of whose parameters and buffers some are on the CPU have them on `device` while they run, inside."""
    away = [m for m in model.modules() if device.type != "cpu" and any(_stays(tensor) for tensor in _own(m))]
    if not away:
        yield
        return
    fetched = _Fetched(device, _largest_layer(model))
    with ExitStack() as stack:
        for module in away:
            replace_forward(stack, module, _Fetching(module, fetched).around)
        yield


def replace_forward(
    stack: ExitStack, module: nn.Module, around: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Give a module what `around` makes of its forward; `stack` puts the old one back."""
    own, before = "forward" in vars(module), module.forward

    def put_back() -> None:
        if own:
            module.forward = before
        else:
            del module.forward

    module.forward = around(before)  # pyright: ignore[reportAttributeAccessIssue]
    stack.callback(put_back)


class _Fetched:
    """Copies on the device, the last ones that were asked for: in lockstep all batches go through the same layer."""

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device, self._limit = device, limit
        self._bytes = 0
        # by parameter: it, its version and the copy
        self._copies: OrderedDict[int, tuple[Tensor, int, Tensor]] = OrderedDict()

    def of(self, parameter: Tensor) -> Tensor:
        """A parameter or buffer on the device; what asks for a gradient gets it where it lies."""
        if not _stays(parameter):
            return parameter
        if parameter.requires_grad and torch.is_grad_enabled():
            # a step follows, and steps of fused optimizers leave the version as it is
            self._forget(id(parameter))
            return parameter.to(self.device)
        known, version, there = self._copies.get(id(parameter), (None, -1, parameter))
        if known is not parameter or version != parameter._version:
            self._forget(id(parameter))
            while self._copies and self._bytes + parameter.nbytes > self._limit:
                self._forget(next(iter(self._copies)))
            there = parameter.detach().to(self.device)
            self._bytes += there.nbytes
            self._copies[id(parameter)] = parameter, parameter._version, there
        self._copies.move_to_end(id(parameter))
        return there

    def _forget(self, key: int) -> None:
        """Let go of a copy, if there is one."""
        if key in self._copies:
            self._bytes -= self._copies.pop(key)[2].nbytes


class _Fetching:
    """The calls of one module. Several may be under way at once: forwards that are suspended in it."""

    def __init__(self, module: nn.Module, fetched: _Fetched) -> None:
        self._fetched = fetched
        self._running = 0
        # of parameters and of buffers: where the module looks them up, and what lies there between calls
        self._places: list[dict[str, Any]] = [vars(module)[name] for name in ("_parameters", "_buffers")]
        self._home: list[dict[str, Any]] = []

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward with the module's own parameters and buffers on the device."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if not self._running:
                self._home = [dict(place) for place in self._places]
            self._running += 1
            try:
                for place, home in zip(self._places, self._home, strict=True):
                    place.update({name: self._fetched.of(t) for name, t in home.items() if t is not None})
                return forward(*args, **kwargs)
            finally:
                self._running -= 1
                if not self._running:
                    for place, home in zip(self._places, self._home, strict=True):
                        place.update(home)

        return run


def _own(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module itself."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _stays(tensor: Tensor) -> bool:
    """Whether a tensor is on the CPU; what is on another GPU is somebody else's doing."""
    return tensor.device.type == "cpu"


def _largest_layer(model: nn.Module) -> int:
    """Bytes of the parameters of the largest layer that stays on the CPU."""
    layers = [layer for each in model.modules() if isinstance(each, nn.ModuleList) for layer in each]
    return max(sum(p.nbytes for p in layer.parameters() if _stays(p)) for layer in layers or [model])
