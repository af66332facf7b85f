"""ONNX: torch's dynamo exporter with dynamic batch and sequence, checked against PyTorch in onnxruntime.

Needs the extra `faster-pruner[onnx]`.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from faster_pruner.capture import inference
from faster_pruner.errors import OptionError, OutputError, VerificationError
from faster_pruner.latency import longest_row

# Logits of the exported float32 model may differ from PyTorch's by this much.
TOLERANCE = 1e-4
# The shape that the exporter sees, and those that parity is checked on.
_EXPORTED_SHAPE = (2, 16)
_CHECKED_SHAPES = ((1, 2), (1, 33), (5, 7), (3, 128))
_LARGEST_SINGLE_FILE = 2**31 - 2**20


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file.

    Attributes:
        file: the `.onnx` file.
        bytes: its size, weights included.
        parity: largest difference of a logit from PyTorch's over `shapes`.
        shapes: (batch, sequence) pairs that were compared; none of them was used in the export.
    """

    file: Path
    bytes: int
    parity: float
    shapes: list[tuple[int, int]]


class _Logits(nn.Module):
    """The model as a function of named tensors."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits."""
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


class OnnxModel:
    """An ONNX file in onnxruntime, called like the PyTorch model: `model(**inputs).logits`."""

    def __init__(self, file: Path) -> None:
        runtime = _require("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    def logits(self, inputs: dict[str, Tensor]) -> np.ndarray:
        """Logits [B, C] for the tensors that the file knows."""
        fed = {name: inputs[name].numpy() for name in self._names if name in inputs}
        if "token_type_ids" in self._names and "token_type_ids" not in fed:
            fed["token_type_ids"] = np.zeros_like(fed["input_ids"])
        return self._session.run(None, fed)[0]


def _require(package: str) -> Any:
    """Import an optional package. Raises OptionError."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise OptionError(f"this needs {package}: pip install 'faster-pruner[onnx]'") from error


@contextmanager
def _quiet() -> Generator[None]:
    """Warnings and log lines of the exporter are about its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root", "")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Tensors that the model is called with."""
    types = int(getattr(model.config, "type_vocab_size", 0) or 0)
    return ("input_ids", "attention_mask", "token_type_ids") if types > 1 else ("input_ids", "attention_mask")


def _example(model: nn.Module, shape: tuple[int, int], seed: int) -> dict[str, Tensor]:
    """Random ids with padding in the last row."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, int(config.vocab_size), shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, max(1, shape[1] // 2) :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: inputs[name] for name in input_names(model)}


def export_onnx(model: nn.Module, file: Path) -> Exported:
    """Export a classifier to ONNX, run it in onnxruntime, and compare.

    Args:
        model: float32, on the CPU.
        file: where to write; an existing file is replaced once the new one has been verified.

    Raises:
        OptionError: onnx, onnxscript or onnxruntime is not installed.
        VerificationError: onnxruntime's logits differ by more than 1e-4.
        OutputError: the file cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _require(package)
    names = input_names(model)
    batch = torch.export.Dim("batch", min=1, max=65_536)
    sequence = torch.export.Dim("sequence", min=2, max=max(3, longest_row(model)))
    example = _example(model, _EXPORTED_SHAPE, 0)
    with inference(model), _quiet():
        program: Any = torch.onnx.export(
            _Logits(model, names),
            tuple(example.values()),
            dynamo=True,
            dynamic_shapes={"tensors": tuple({0: batch, 1: sequence} for _ in names)},
            input_names=list(names),
            output_names=["logits"],
            verbose=False,
        )
    size = sum(parameter.nbytes for parameter in model.parameters())
    with _beside(file) as staging:
        try:
            program.save(str(staging), external_data=size > _LARGEST_SINGLE_FILE)
        except OSError as error:
            raise OutputError(f"cannot write {str(file)!r}: {error.strerror or error}") from error
        parity, shapes = _parity(model, OnnxModel(staging).logits)
        if not parity <= TOLERANCE:
            raise VerificationError(
                f"the exported model's logits differ from PyTorch's by {parity:.1e}, more than {TOLERANCE:g}; "
                "nothing was written. Please report this"
            )
    return Exported(file=file, bytes=_bytes(file), parity=parity, shapes=shapes)


def quantise(exported: Path, file: Path) -> Path:
    """Dynamic int8 quantisation of an exported file by onnxruntime's own tool: weights int8."""
    quantization = _require("onnxruntime.quantization")
    with _beside(file) as staging, _quiet():
        quantization.quantize_dynamic(str(exported), str(staging), weight_type=quantization.QuantType.QInt8)
        OnnxModel(staging)
    return file


def export_openvino(model: nn.Module, exported: Path) -> tuple[Path, Callable[[dict[str, Tensor]], Tensor], float]:
    """OpenVINO IR (`.xml` and `.bin`) from an ONNX file, compared with PyTorch.

    Returns:
        The `.xml` file, a function that runs it, and the largest difference of a logit.

    Raises:
        OptionError: openvino is not installed.
        VerificationError: its logits differ from PyTorch's by more than 1e-4 (inference is asked for in float32).
    """
    openvino = _require("openvino")
    file = exported.with_suffix(".xml")
    converted = openvino.convert_model(str(exported))
    openvino.save_model(converted, str(file), compress_to_fp16=False)
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = input_names(model)

    def call(inputs: dict[str, Tensor]) -> Tensor:
        zeros = torch.zeros_like(inputs["input_ids"])
        return torch.from_numpy(compiled({name: inputs.get(name, zeros).numpy() for name in names})[0].copy())

    parity, _ = _parity(model, lambda inputs: call(inputs).numpy())
    if not parity <= TOLERANCE:
        raise VerificationError(f"OpenVINO's logits differ from PyTorch's by {parity:.1e}, more than {TOLERANCE:g}")
    return file, call, parity


def _parity(
    model: nn.Module, logits_of: Callable[[dict[str, Tensor]], np.ndarray]
) -> tuple[float, list[tuple[int, int]]]:
    """Largest difference of a logit, and the shapes that were compared: those that the model can take."""
    shapes = [shape for shape in _CHECKED_SHAPES if shape[1] <= longest_row(model)]
    worst = 0.0
    with inference(model):
        for seed, shape in enumerate(shapes, start=1):
            inputs = _example(model, shape, seed)
            expected = model(**inputs).logits.numpy()
            worst = max(worst, float(np.abs(logits_of(inputs) - expected).max()))
    return worst, shapes


@contextmanager
def _beside(file: Path) -> Generator[Path]:
    """A temporary file beside `file` that takes its place when the block ends well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        staging = Path(folder) / file.name
        yield staging
        for extra in Path(folder).iterdir():
            if extra != staging:
                extra.replace(file.parent / extra.name)
        staging.replace(file)


def _bytes(file: Path) -> int:
    """Size of an ONNX file with its external data."""
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*") if part.is_file())
