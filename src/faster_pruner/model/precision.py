"""The arithmetic of calibration and recovery passes: float32, or bfloat16 products where hardware does them faster.

Only forwards (and the backward that follows) are affected: sums, solves and the weights that are saved never are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from faster_pruner.options import PrecisionName


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


def choose_precision(name: PrecisionName, device: torch.device) -> PrecisionName:
    """What `auto` means on `device`: bfloat16 where its products are done in hardware, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return "bfloat16" if any(getattr(torch.cpu, check, bool)() for check in checks) else "float32"
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
def forward_in(precision: PrecisionName, device: torch.device) -> Generator[None]:
    """Run the forwards inside in `precision` (`auto` is decided by `device`)."""
    if choose_precision(precision, device) == "float32":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
        if device.type != "cpu":
            yield
            return
        with _AttentionInFloat32():
            yield
