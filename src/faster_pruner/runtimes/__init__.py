"""What runs models: timing on the machine at hand, and the formats of other runtimes."""

from faster_pruner.options import RUNTIMES

__all__ = ["FORMATS", "RUNTIMES"]

# What `export` can write.
FORMATS = ("onnx", "openvino")
