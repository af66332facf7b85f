"""The operators that a model is written in, where what torch's exporter chooses is slow in onnxruntime.

Standard ONNX all of it, so that other runtimes read the file too. docs/decisions.md has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

# What an exported graph is made of: a value in it.
Value = Any

# What a normalisation of a sum begins with; some models write theirs out.
_NORMS = ("LayerNormalization", "ReduceMean")


def attention_by_hand() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Scaled dot-product attention in five operators, as `custom_translation_table` of `torch.onnx.export`.

    torch's own translation asks for the probabilities that are not numbers and replaces them: two more passes over the
    largest tensor of a layer, that change nothing, because its masks are finite. It turns the keys around in memory
    and scales them as well as the queries.
    """
    # loaded here: the package can be used without it
    op, ir = import_module("onnxscript.onnx_opset").opset20, import_module("onnxscript").ir

    def attention(  # noqa: PLR0917 - the signature that torch calls it with
        query: Value,
        key: Value,
        value: Value,
        attn_mask: Value = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Value:
        del dropout_p  # models are exported in eval mode
        heads, width = query.shape[1], query.shape[-1]
        if enable_gqa and key.shape[1] != heads:
            key, value = (_repeated(op, each, heads) for each in (key, value))
        factor = 1 / math.sqrt(width) if scale is None else float(scale)
        scaled = op.Mul(query, op.Constant(value=ir.tensor(factor, dtype=query.dtype)))
        scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
        if is_causal:
            scores = op.Add(scores, _hiding(op, ir, _causal(op, query, key), query.dtype))
        elif attn_mask is not None:
            masked = attn_mask.dtype == ir.DataType.BOOL
            scores = op.Add(scores, _hiding(op, ir, attn_mask, query.dtype) if masked else attn_mask)
        return op.MatMul(op.Softmax(scores, axis=-1), value)

    return {torch.ops.aten.scaled_dot_product_attention.default: attention}


def _repeated(op: Any, x: Value, heads: int) -> Value:
    """[B, heads, S, n]: every one of the key or value heads of x [B, K, S, n] as often as queries share it."""
    times = op.Constant(value_ints=[1, 1, heads // x.shape[1], 1, 1])
    expanded = op.Expand(op.Unsqueeze(x, op.Constant(value_ints=[2])), times)
    return op.Reshape(expanded, op.Constant(value_ints=[0, heads, -1, x.shape[-1]]))


def _causal(op: Any, query: Value, key: Value) -> Value:
    """[S, L], true where a query may see a key: that of its own place and those before."""
    size = op.Concat(op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3), axis=0)
    below = op.Trilu(op.Expand(op.Constant(value_float=1.0), size), upper=0)
    return op.Greater(below, op.Constant(value_float=0.0))


def _hiding(op: Any, ir: Any, seen: Value, dtype: Any) -> Value:
    """What hides scores when it is added: 0 where `seen` is true, and elsewhere the least finite number."""
    shown, hidden = (op.Constant(value=ir.tensor(each, dtype=dtype)) for each in (0.0, dtype.min))
    return op.Where(seen, shown, hidden)


def keep_norms(model: Any) -> int:
    """Write the sums that go into normalisations as `Sum`, and say how many.

    onnxruntime makes one SkipLayerNormalization of an `Add` and a LayerNormalization. On a CPU it takes several times
    as long as the two (its loops are not vectorised), whatever is pruned. A `Sum` of two is the same sum, and stays.

    Args:
        model: an `onnx_ir.Model`, which is changed.
    """
    found = 0
    for node in model.graph:
        before = node.inputs[0].producer() if node.op_type in _NORMS and node.inputs[0] is not None else None
        if before is not None and before.op_type == "Add" and before.domain in ("", "ai.onnx"):
            before.op_type = "Sum"
            found += 1
    return found
