"""OpenVINO IR from an ONNX file. Needs the extra `faster-pruner[openvino]`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.errors import VerificationError
from faster_pruner.host.files import beside
from faster_pruner.host.marks import MARK
from faster_pruner.model.limits import input_names
from faster_pruner.runtimes.onnx import TOLERANCE, Call, parity, require


def export_openvino(model: nn.Module, exported: Path) -> tuple[Path, Call, float]:
    """OpenVINO IR (`.xml` and `.bin`) beside an ONNX file, compared with PyTorch.

    Args:
        model: that was exported.
        exported: the ONNX file.

    Returns:
        The `.xml` file, a function that runs it, and the largest difference of a returned value.

    Raises:
        OptionError: openvino is not installed.
        VerificationError: a value differs from PyTorch's by more than 1e-4 (inference is asked for in float32).
    """
    openvino = require("openvino")
    file = exported.with_suffix(".xml")
    converted = openvino.convert_model(str(exported))
    # only files with this mark are ever replaced
    converted.set_rt_info(version("faster-pruner"), [MARK])
    with beside(file) as staging:
        openvino.save_model(converted, str(staging), compress_to_fp16=False)
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = input_names(model)
    outputs = [output.get_any_name() for output in compiled.outputs]

    def call(inputs: Mapping[str, Tensor]) -> Any:
        fed = {name: inputs[name] if name in inputs else torch.zeros_like(inputs["input_ids"]) for name in names}
        values = compiled({name: value.numpy() for name, value in fed.items()})
        return SimpleNamespace(**{name: torch.from_numpy(values[i].copy()) for i, name in enumerate(outputs)})

    worst, _ = parity(model, call)
    if not worst <= TOLERANCE:
        raise VerificationError(f"OpenVINO's values differ from PyTorch's by {worst:.1e}, more than {TOLERANCE:g}")
    return file, call, worst
