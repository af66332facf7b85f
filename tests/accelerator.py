"""A device that is not the CPU, for tests on machines without one: `accelerator.cpp`, compiled once a machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

NAME = "fake"
SOURCE = Path(__file__).with_suffix(".cpp")


class Device(ModuleType):
    """What torch asks of a device's module."""

    def __init__(self) -> None:
        super().__init__(f"torch.{NAME}")
        self.ops: Any = torch.ops.faster_pruner_fake

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        del seed

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        """It draws as the CPU does."""
        del device
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        del device
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def memory_allocated(self) -> int:
        """Bytes of the tensors that are alive."""
        return self.ops.allocated()

    def max_memory_allocated(self) -> int:
        """The most of them since `reset_peak_memory_stats`."""
        return self.ops.most()

    def reset_peak_memory_stats(self) -> None:
        """Forget the most so far."""
        self.ops.forget_most()


@cache
def why_not() -> str | None:
    """What is missing for it here, if anything."""
    if not shutil.which("g++"):
        return "there is no g++ to compile a device with"
    try:
        _compiled()
    except subprocess.CalledProcessError as error:
        return f"a device does not compile with torch {torch.__version__}: {error.stderr[:200]}"
    return None


def start() -> Device:
    """The device, compiled where this machine has not yet, and registered with torch.

    Before the first backward of a process: autograd counts devices once.
    """
    present: Any = getattr(torch, NAME, None)
    if isinstance(present, Device):
        return present
    torch.ops.load_library(_compiled())
    device = Device()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, device)
    torch.utils.generate_methods_for_privateuse1_backend()
    return device


def _compiled() -> Path:
    """The library, kept in the temporary folder under a name that says what it was made of."""
    made_of = sha256(SOURCE.read_bytes() + torch.__version__.encode() + sys.version.encode()).hexdigest()[:16]
    target = Path(tempfile.gettempdir()) / f"faster-pruner-tests-device-{made_of}.so"
    if target.exists():
        return target
    package = Path(torch.__file__).parent
    include = [f"-I{package / 'include'}", f"-I{package / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{package / 'lib'}", "-lc10", "-ltorch_cpu"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", abi, *include, str(SOURCE), "-o", str(made)]
        subprocess.run([*command, *libraries], check=True, capture_output=True, text=True)
        made.replace(target)
    return target
