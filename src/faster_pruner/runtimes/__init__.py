"""What runs models: timing on the machine at hand, and the formats of other runtimes."""

# What `bench` can time, and what `export` can write.
RUNTIMES = ("torch", "compile", "onnx", "onnx-int8")
FORMATS = ("onnx", "openvino")
