"""The machine at hand: the device to use, and what a measurement depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from faster_pruner.errors import OptionError


def pick_device(name: str | None) -> torch.device:
    """The device asked for, else cuda when there is one, else the CPU. Raises OptionError."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a measurement depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "faster_pruner": version("faster-pruner"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "device": f"{device.type}: {name}",
        "threads": str(torch.get_num_threads()),
    }
