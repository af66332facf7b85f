"""The text and tables of docs/runtimes.md, from what `runtimes.py` has measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Operators by what they are there for; every other one is the last row.
_KINDS = {
    "matrix products": ("MatMul", "FusedMatMul", "FusedGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    "norms, and the sums before them": ("SkipLayerNormalization", "LayerNormalization", "Sum"),
    "masks: Where, IsNaN": ("Where", "IsNaN"),
    "Softmax": ("Softmax",),
    "biases, masks: Add": ("Add",),
    "activations": ("BiasGelu", "Gelu"),
    "moves: Transpose, Reshape": ("Transpose", "Reshape"),
}
_REST = "other"
_SIZES = {
    "half": "multiples of 8",
    "half, any size": "any size",
    "half, multiples of 16": "of 16",
    "half, multiples of 32": "of 32",
    "half, uniform": "of 8, uniform",
}

Timings = Sequence[Mapping[str, Any]]


def page(found: Mapping[str, Any]) -> str:
    """Markdown."""
    used = found["measured with"]
    sections = [
        ["# Measured speed and other runtimes"],
        [
            "MiniLM-L6 on SST-2, default preset. Models take turns in each runtime; medians, speed-up over the dense "
            "model in the same runtime, beside what multiply-accumulates would give. Written by "
            "`benchmarks/runtimes.py`.",
        ],
        ["## Runtimes", "", _measured_with(used["runtimes"]), "", *_runtimes(found["runtimes"], ("half", "30 %"))],
        [
            f"With one thread, in processor time, which other work on the machine changes little. "
            f"{_measured_with({**used['one core'], 'threads': '1'})}",
            "",
            *_runtimes(found["one core"], ("half", "30 %")),
        ],
        [
            "The same for BERT-base with random weights, and half of the heads and neurons of every layer:",
            "",
            *_runtimes(found["base"], ("half",)),
        ],
        ["## What an exported file is made of", "", *_graphs(found["graphs"])],
        ["## Sizes", "", *_sizes(found["sizes"])],
        ["## Export", "", _measured_with(used["exported"]), "", *_exports(found["exported"])],
    ]
    return "\n".join(line for section in sections for line in [*section, ""]).rstrip("\n") + "\n"


def _measured_with(environment: Mapping[str, str]) -> str:
    """One sentence."""
    return "Measured with " + ", ".join(f"{key} {value}" for key, value in environment.items()) + "."


def _runtimes(timings: Timings, names: Sequence[str]) -> list[str]:
    """Speed-ups over the dense model in the same runtime, and what the runtime itself gains over eager PyTorch."""
    shares = {"half": "half the MACs", "30 %": "30 % of the MACs"}
    heads = [cell for name in names for cell in (shares[name], "ideal")]
    eager = ["dense against eager", *(f"{name} against eager" for name in names)]
    rows = [_line(["batch x tokens", "runtime", *heads, *eager])]
    rows.append("|" + "---|" * (2 + len(heads) + len(eager)))
    by = {(t["batch"], t["sequence"], t["runtime"], t["model"]): t for t in timings}
    for batch, sequence in dict.fromkeys((key[0], key[1]) for key in by):
        for runtime in dict.fromkeys(key[2] for key in by):
            own = [by[batch, sequence, runtime, name] for name in names]
            cells = [cell for t in own for cell in (f"{t['speed_up']:.2f}x", f"{t['ideal']:.2f}x")]
            gains = [
                by[batch, sequence, "torch", name]["ms"] / by[batch, sequence, runtime, name]["ms"]
                for name in ("dense", *names)
            ]
            rows.append(_line([f"{batch} x {sequence}", runtime, *cells, *(f"{gain:.2f}x" for gain in gains)]))
    return rows


def _graphs(found: Mapping[str, Any]) -> list[str]:
    """Times of the same model in several graphs, and where the time goes at the largest shape."""
    rows = [
        "torch's exporter writes attention with a check for probabilities that are not numbers, which costs two passes "
        "over the largest tensor of a layer; and onnxruntime makes one SkipLayerNormalization of a sum and the "
        "normalisation after it, which on a CPU takes longer than the two, and as long in a pruned model as in the "
        "dense one. `export` writes attention in five operators, and these sums as `Sum`, which is not fused. All "
        "operators are standard ONNX. What cannot be exported that way, or differs from PyTorch, is exported as torch "
        "writes it, and the table of `export` says so.",
        "",
        "Processor time, one thread:",
        "",
        "| batch x tokens | graph | dense | half the MACs | speed-up |",
        "|---|---|---|---|---|",
    ]
    names = {"optimised": "torch's own after `onnxruntime.transformers.optimizer`"}
    for t in found["times"]:
        times = f"{t['dense_ms']:.1f} ms", f"{t['half_ms']:.1f} ms", f"{t['speed_up']:.2f}x"
        rows.append(_line([f"{t['batch']} x {t['sequence']}", names.get(t["graph"], t["graph"]), *times]))
    columns = {(p["graph"], p["model"]): _by_kind(p["ms"]) for p in found["profiles"]}
    graphs = dict.fromkeys(key[0] for key in columns)
    rows += ["", "Milliseconds of a run at 32 x 128 by operator (onnxruntime's profiler), dense / half the MACs:", ""]
    rows += [_line(["", *graphs]), "|" + "---|" * (1 + len(graphs))]
    for kind in (*_KINDS, _REST):
        cells = [f"{columns[g, 'dense'][kind]:.1f} / {columns[g, 'half'][kind]:.1f}" for g in graphs]
        rows.append(_line([kind, *cells]))
    rows += [
        "",
        "Two options of onnxruntime's sessions that a service may need:",
        "",
        '* `options.add_session_config_entry("session.set_denormal_as_zero", "1")`, for the first session of the '
        "process, where rows are padded: hidden probabilities are so small (denormal) that Intel's cores multiply them "
        "slowly.",
        '* `options.add_session_config_entry("session.x64quantprecision", "1")`, for int8 on x86 processors without '
        "VNNI: by default products overflow there, and results are wrong.",
    ]
    return rows


def _by_kind(spent: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds by `_KINDS`."""
    kind = {name: each for each, names in _KINDS.items() for name in names}
    found = dict.fromkeys((*_KINDS, _REST), 0.0)
    for name, ms in spent.items():
        found[kind.get(name, _REST)] += ms
    return found


def _sizes(timings: Timings) -> list[str]:
    """Speed-ups of half-size models whose sizes are rounded differently."""
    rows = [
        "Half the MACs, one thread, processor time. The default keeps neurons in multiples of 8.",
        "",
        _line(["batch x tokens", "runtime", *_SIZES.values()]),
        "|" + "---|" * (2 + len(_SIZES)),
    ]
    by = {(t["batch"], t["sequence"], t["runtime"], t["model"]): t["speed_up"] for t in timings}
    for batch, sequence, runtime in dict.fromkeys(key[:3] for key in by):
        cells = [f"{by[batch, sequence, runtime, name]:.2f}x" for name in _SIZES]
        rows.append(_line([f"{batch} x {sequence}", runtime, *cells]))
    return rows


def _exports(found: Mapping[str, Timings]) -> list[str]:
    """Steps of `export`."""
    rows = [
        "`faster-pruner export --int8`. The difference is the largest of any logit from PyTorch's, over shapes that "
        "the exporter never saw; speed-up is over PyTorch eager of the same model.",
        "",
        "| model | step | weights | largest difference | accuracy | loss | 1 x 32 | 32 x 128 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, steps in found.items():
        for step in steps:
            parity = "" if step["parity"] is None else f"{step['parity']:.0e}"
            speeds = [f"{ratio:.2f}x" for _, ratio in step["speed_up"]]
            quality = f"{step['metrics']['accuracy']:.2f}", f"{step['metrics']['loss']:.4f}"
            rows.append(_line([name, step["name"], f"{step['megabytes']:.1f} MB", parity, *quality, *speeds]))
    return rows


def _line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"
