"""ONNX: torch's dynamo exporter with dynamic batch and sequence, checked against PyTorch in onnxruntime.

A model goes out as a function from its input tensors to the tensors that it returns, by name. Needs the extra
`faster-pruner[onnx]`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from faster_pruner.errors import OptionError, UnsupportedModelError, VerificationError
from faster_pruner.host.files import beside
from faster_pruner.host.marks import MARK
from faster_pruner.model.limits import input_names, longest_row, made_up_inputs, main_input
from faster_pruner.model.passes import inference
from faster_pruner.runtimes.lowering import attention_by_hand, keep_norms

# What the exported float32 model returns may differ from PyTorch's by this much.
TOLERANCE = 1e-4
# The shape that the exporter sees, and those that parity is checked on.
_EXPORTED_SHAPE = (2, 16)
_CHECKED_SHAPES = ((1, 2), (1, 33), (5, 7), (3, 128))
# Samples by which each sound that parity is checked on is shorter than the one before.
_SHORTER = 333
_LARGEST_SINGLE_FILE = 2**31 - 2**20
_NOT_WRITTEN = "; nothing was written. Please report this"

# Anything that is called like the model and returns its tensors as attributes.
Call = Callable[[Mapping[str, Tensor]], Any]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file.

    Attributes:
        file: the `.onnx` file.
        bytes: its size, weights included.
        parity: largest difference of a returned value from PyTorch's over `shapes`.
        shapes: (batch, sequence) pairs that were compared; none of them was used in the export.
        note: why it holds what torch's exporter writes by itself; empty where onnxruntime runs it faster.
    """

    file: Path
    bytes: int
    parity: float
    shapes: list[tuple[int, int]]
    note: str = ""


class _Tensors(nn.Module):
    """The model as a function of named tensors that returns plain ones."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the model returns."""
        return tuple(_returned(self.model(**dict(zip(self.names, tensors, strict=True)))).values())


def _returned(output: Any) -> dict[str, Tensor]:
    """The tensors that a model returns, by name; tuples of hidden states and the like are left out."""
    return {name: value for name, value in dict(output).items() if isinstance(value, Tensor)}


class OnnxModel:
    """An ONNX file in onnxruntime, called like the PyTorch model: what it returns has tensors as attributes."""

    def __init__(self, file: Path) -> None:
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        # threads that wait for this session's next call would take the cores of the one that is called meanwhile
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """What the model returns for the tensors that the file knows."""
        fed = {name: inputs[name].numpy() for name in self._names if name in inputs}
        if "token_type_ids" in self._names and "token_type_ids" not in fed:
            fed["token_type_ids"] = np.zeros_like(fed["input_ids"])
        values = self._session.run(None, fed)
        return SimpleNamespace(**{n: torch.from_numpy(v) for n, v in zip(self._outputs, values, strict=True)})


def require(package: str) -> Any:
    """Import an optional package. Raises OptionError."""
    extra = "openvino" if package == "openvino" else "onnx"
    try:
        return import_module(package)
    except ImportError as error:
        raise OptionError(f"this needs {package}: pip install 'faster-pruner[{extra}]'") from error


def require_onnx() -> None:
    """Raise OptionError where what an export needs is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)


@contextmanager
def quiet() -> Generator[None]:
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


def example(model: nn.Module, shape: tuple[int, int], seed: int) -> dict[str, Tensor]:
    """Every tensor that the model can be called with: random, texts with padding in the last row."""
    inputs, names = made_up_inputs(model, *shape, seed=seed, padded=True), input_names(model)
    if main_input(model) == "input_values" and inputs["input_values"].ndim == 2:
        # sounds of other lengths than the one that is exported
        inputs = {name: value[:, : value.shape[1] - seed * _SHORTER] for name, value in inputs.items()}
    return {n: inputs[n] if n in inputs else torch.zeros_like(inputs["input_ids"]) for n in names}


def export_onnx(model: nn.Module, file: Path, *, faster: bool = True) -> Exported:
    """Export a model to ONNX, run it in onnxruntime, and compare.

    Args:
        model: float32, on the CPU.
        file: where to write; an existing file is replaced once the new one has been verified.
        faster: in the operators that onnxruntime is fast in, as long as they can be had and agree with PyTorch, and not
            in those that torch's exporter chooses.

    Raises:
        OptionError: onnx, onnxscript or onnxruntime is not installed.
        UnsupportedModelError: torch cannot export the model.
        VerificationError: what onnxruntime returns differs by more than 1e-4.
        OutputError: the file cannot be written.
    """
    require_onnx()
    try:
        return _export(model, file, faster=faster)
    except (UnsupportedModelError, VerificationError) as error:
        if not faster:
            raise
        reason = str(error).removesuffix(_NOT_WRITTEN)
        note = f"{reason}; the file holds torch's own operators instead, which onnxruntime may run slower"
        return replace(_export(model, file, faster=False), note=note)


def _export(model: nn.Module, file: Path, *, faster: bool) -> Exported:
    """One export, written once it is verified, in the operators that onnxruntime is fast in or in torch's own."""
    inputs = example(model, _EXPORTED_SHAPE, 0)
    with inference(model), quiet():
        outputs = list(_returned(model(**inputs)))
        program = _program(model, inputs, outputs, faster=faster)
    size = sum(parameter.nbytes for parameter in model.parameters())
    # only files with this mark are ever replaced
    program.model.metadata_props[MARK] = version("faster-pruner")
    with beside(file) as staging:
        program.save(str(staging), external_data=size > _LARGEST_SINGLE_FILE)
        try:
            worst, shapes = parity(model, OnnxModel(staging))
        except Exception as error:  # onnxruntime's own errors
            raise VerificationError(
                f"the exported model cannot run what PyTorch runs ({' '.join(str(error).split())[:200]}){_NOT_WRITTEN}"
            ) from error
        if not worst <= TOLERANCE:
            raise VerificationError(
                f"what the exported model returns differs from PyTorch's by {worst:.1e}, more than {TOLERANCE:g}"
                f"{_NOT_WRITTEN}"
            )
    return Exported(file=file, bytes=_bytes(file), parity=worst, shapes=shapes)


def _program(model: nn.Module, inputs: dict[str, Tensor], outputs: list[str], *, faster: bool) -> Any:
    """What torch's exporter makes of a model. Raises UnsupportedModelError."""
    try:
        program: Any = torch.onnx.export(
            _Tensors(model, tuple(inputs)),
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes={"tensors": tuple(_dynamic(model, value) for value in inputs.values())},
            input_names=list(inputs),
            output_names=outputs,
            custom_translation_table=attention_by_hand() if faster else None,
            verbose=False,
        )
        if faster:
            keep_norms(program.model)
    except Exception as error:  # the exporter's, about whatever in the model's code it cannot follow
        raise UnsupportedModelError(
            f"torch {torch.__version__} cannot export a {type(model).__name__} to ONNX: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return program


def _dynamic(model: nn.Module, value: Tensor) -> dict[int, Any]:
    """The sides of an input that may be of any length: of images and spectrograms, only how many there are."""
    batch = torch.export.Dim("batch", min=1, max=65_536)
    if main_input(model) == "input_ids":
        return {0: batch, 1: torch.export.Dim("sequence", min=2, max=max(3, longest_row(model)))}
    return {0: batch, 1: torch.export.Dim.AUTO} if value.ndim == 2 else {0: batch}


def quantise(exported: Path, file: Path) -> Path:
    """Dynamic int8 quantisation of an exported file by onnxruntime's own tool: weights int8, a scale per column."""
    quantization = require("onnxruntime.quantization")
    with beside(file) as staging, quiet():
        weights = quantization.QuantType.QInt8
        quantization.quantize_dynamic(str(exported), str(staging), per_channel=True, weight_type=weights)
        OnnxModel(staging)
    return file


def parity(model: nn.Module, call: Call) -> tuple[float, list[tuple[int, int]]]:
    """Largest difference of a returned value, and the shapes that were compared: those that the model can take.

    What is returned for padding is not compared: a token of it that sees no other token, as a window of attention may
    leave it, is anything at all.
    """
    shapes = [shape for shape in _CHECKED_SHAPES if shape[1] <= longest_row(model)]
    worst = 0.0
    with inference(model):
        for seed, shape in enumerate(shapes, start=1):
            inputs = example(model, shape, seed)
            found = call(inputs)
            for name, expected in _returned(model(**inputs)).items():
                gap = (getattr(found, name) - expected).abs()
                mask = inputs.get("attention_mask")
                per_token = mask is not None and main_input(model) == "input_ids" and gap.shape[:2] == mask.shape
                worst = max(worst, float((gap[mask.bool()] if mask is not None and per_token else gap).max()))
    return worst, shapes


def _bytes(file: Path) -> int:
    """Size of an ONNX file with its external data."""
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*") if part.is_file())
