"""The arithmetic of calibration and recovery passes: float32, or bfloat16 products where those are faster.

Only forwards (and the backward that follows) are affected: sums, solves and the weights that are saved never are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from faster_pruner.host.arithmetic import bfloat16_pays
from faster_pruner.host.mapped import copied
from faster_pruner.options import Arithmetic, PrecisionName

# transformers' mark of modules and tensors that it need not initialise.
_DONE = "_is_hf_initialized"


class _AttentionInFloat32(TorchFunctionMode):
    """Attention in float32 inside an autocast region on a CPU.

    torch's bfloat16 backward of it there takes seven times as long as the float32 one.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **keywords)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_widened, args), **{key: _widened(value) for key, value in keywords.items()})


def _widened(value: Any) -> Any:
    """A floating-point tensor as float32, anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def choose_precision(name: PrecisionName, device: torch.device) -> Arithmetic:
    """What `auto` means on `device`: bfloat16 where a GPU has it, or a CPU was measured to be faster in it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        return "bfloat16" if bfloat16_pays() else "float32"
    return "float32"


@contextmanager
def usual_torch() -> Generator[None]:
    """Torch as it is when nobody has changed it: float32 by default, and gradients where they are asked for.

    What a caller has set (`torch.set_default_dtype`, `torch.inference_mode`, `torch.set_grad_enabled`) is theirs again
    afterwards; inside it would change results, or end a pass half-way.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def forward_in(precision: Arithmetic, device: torch.device) -> Generator[None]:
    """Run the forwards inside in `precision`."""
    if precision == "float32":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
        if device.type != "cpu":
            yield
            return
        with _AttentionInFloat32():
            yield


def copy_of(model: nn.Module, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> nn.Module:
    """A copy of a model, its floating-point tensors in another dtype, all of them on another device.

    Tensors are copied one by one, into files where weights are kept there. What no file holds (rotary frequencies)
    keeps its dtype, as where transformers opens a checkpoint in another one.
    """
    computed = {id(module.get_buffer(name)) for module in model.modules() for name in _computed(module)}
    copies: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        stays = id(tensor) in computed or not tensor.is_floating_point()
        own = copied(tensor, dtype=None if stays else dtype, device=device)
        copies[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    return copy.deepcopy(model, copies)


def in_float32(model: nn.Module) -> nn.Module:
    """A copy in float32, with what no file holds computed anew where it was rounded with the rest (`model.half()`).

    A checkpoint of the model has it exact when it is opened.
    """
    own: Any = copy_of(model, dtype=torch.float32)
    rounded = {module for module in own.modules() if any(_rounded(module.get_buffer(n)) for n in _computed(module))}
    for module in rounded:
        module.float()
    if rounded and hasattr(own, "initialize_weights"):
        for module in own.modules():
            setattr(module, _DONE, module not in rounded)
        for tensor in own.state_dict(keep_vars=True).values():
            setattr(tensor, _DONE, True)
        own.initialize_weights()
    return own


def _computed(module: nn.Module) -> list[str]:
    """Names of a module's buffers that are not saved."""
    found = dict(module.named_buffers(recurse=False))
    return [name for name in vars(module)["_non_persistent_buffers_set"] if name in found]


def _rounded(tensor: Tensor) -> bool:
    """Whether a tensor has less than float32."""
    return tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize
