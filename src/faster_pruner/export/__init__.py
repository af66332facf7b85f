"""Checkpoints in the formats of other runtimes."""

from faster_pruner.export.onnx import Exported, OnnxModel, export_onnx, export_openvino, quantise

__all__ = ["Exported", "OnnxModel", "export_onnx", "export_openvino", "quantise"]
