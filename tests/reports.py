"""Reports of runs that never were: of every kind, and with names that nobody should trust."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from faster_pruner.results import (
    Confidence,
    DistillationResult,
    Evaluation,
    Latency,
    Lengths,
    LimitResult,
    Probe,
    PruneReport,
    SizeResult,
    SublayerResult,
)
from faster_pruner.vocabulary.choosing import Affected
from faster_pruner.vocabulary.measured import VocabularyReport

HEADS, NEURONS = 12, 3072
HOSTILE = "</title><script>alert('1')</script><img src=https://example.org/x onerror=alert(2)> \"'& \u202e\x00\ud800"


def evaluation(value: float, split: str = "validation", primary: str = "accuracy") -> Evaluation:
    """Metrics as GLUE's SST-2 has them."""
    metrics = {primary: value, "loss": 0.3139, "calibration_error": 4.51}
    return Evaluation(split=split, rows=872, metrics=metrics, primary=primary)


def heads_left(layer: int) -> str:
    """A mask in which every layer keeps other heads, and one of them none."""
    return "".join("1" if (head * (layer + 2)) % 5 > 1 and layer != 9 else "0" for head in range(HEADS))


def masks(layers: int = 12) -> dict[str, str]:
    """Those of the attention of every layer."""
    return {f"layers.{i}.attention": heads_left(i) for i in range(layers)}


def sublayers(layers: int = 12) -> list[SublayerResult]:
    """Attention and FFN of every layer."""
    found: list[SublayerResult] = []
    for i in range(layers):
        for kind, unit, before, units in (
            ("attention", "head", HEADS, heads_left(i).count("1")),
            ("ffn", "neuron", NEURONS, 8 * (1 + (i * 83) % 380)),
        ):
            found.append(
                SublayerResult(
                    name=f"layers.{i}.{kind}",
                    units_before=before,
                    units=units,
                    unit=unit,
                    residual_before=0.31 + 0.013 * i + (0.2 if kind == "ffn" else 0.0),
                    residual_after=0.08 + 0.011 * i + (0.06 if kind == "ffn" else 0.0),
                    drift_before=None if i == 0 else 0.1 + 0.01 * i,
                    drift_after=None if i == 0 else 0.09 + 0.008 * i,
                    solver="block-cg",
                    status="converged" if i != 7 else "max-iterations",
                    iterations=40 + 3 * i,
                    solve_residual=3e-7,
                    note="" if i != 7 else "raise max_iterations or ridge; weights left as they were",
                )
            )
    return found


def distillation(**changes: Any) -> DistillationResult:
    """One that gained something."""
    found = DistillationResult(
        rows=16384,
        held_out=1024,
        planned=1024,
        steps=1024,
        best_step=768,
        before=0.0912,
        after=0.0413,
        history=[(0, 0.0912), (128, 0.0701), (256, 0.0588), (512, 0.0466), (768, 0.0413), (1024, 0.0421)],
        status="finished",
        fb=24.0,
        recovered={"validation": evaluation(87.9)},
    )
    return replace(found, **changes)


def report(**changes: Any) -> PruneReport:
    """A run of a model with twelve layers."""
    dense = SizeResult(macs=5.4e9, encoder_parameters=85_054_464, parameters=109_483_778, bytes=437_951_328)
    pruned = SizeResult(macs=2.69e9, encoder_parameters=42_369_000, parameters=66_798_314, bytes=267_210_112)
    found = PruneReport(
        model="my-bert",
        task="sst2",
        preset="default",
        options={
            "budget": {"macs": 0.5, "allocation": "free"},
            "method": {"name": "default", "selection": {"name": "second-order", "damping": 0.01}},
            "calibration": {"rows": 2048, "seed": 0, "max_length": 128},
            "distillation": None,
        },
        mean_length=27.4,
        macs_asked=0.5,
        macs_kept=2.69 / 5.4,
        dense=dense,
        pruned=pruned,
        sublayers=sublayers(),
        seconds={"load": 1.2, "rows": 0.9, "structure": 0.4, "statistics": 47.5, "selection": 6.2, "recovery": 31.8}
        | {"evaluation": 61.0, "latency": 12.3, "save and verify": 0.8},
        limits=[LimitResult(cost="macs", dense=5.4e9, asked=2.7e9, pruned=2.69e9)],
        before={"validation": evaluation(92.43)},
        after={"validation": evaluation(91.86)},
        confidence={
            "validation": Confidence(
                metric="accuracy", before=(90.6, 94.15), after=(89.91, 93.69), change=(-1.61, 0.46)
            )
        },
        latency=[
            Latency(batch=1, sequence=32, dense_ms=18.1, pruned_ms=12.9, speed_up=1.4),
            Latency(batch=32, sequence=128, dense_ms=1210.0, pruned_ms=640.0, speed_up=1.89),
        ],
        calibration_hash="9f" * 32,
        calibration_rows=2048,
        lengths=Lengths.of([5 + (i * i) % 61 for i in range(2048)], truncated=12),
        verified="what the reopened checkpoint returns is bit-equal on 310 rows",
        environment={"faster_pruner": "0.1.0", "torch": "2.13.0", "device": "cpu: a processor", "threads": "2"},
        warnings=["layers.7.ffn: raise max_iterations or ridge; weights left as they were"],
    )
    return replace(found, **changes)


def probes() -> list[Probe]:
    """A bisection: what was tried, and what of it is within a point."""
    tried = ((0.5, 92.2, -0.9, 0.1), (0.25, 90.1, -3.4, -1.6), (0.375, 91.5, -1.9, -0.2), (0.4375, 92.0, -0.99, -0.05))
    return [
        Probe(macs=macs, metric="accuracy", before=92.6, after=after, low=low, high=high, within=low >= -1.0)
        for macs, after, low, high in tried
    ]


def searched() -> PruneReport:
    """The smallest model within a drop of a point."""
    options = report().options
    return report(probes=probes(), options=options | {"budget": {"macs": None, "allocation": "free", "max_drop": 0.01}})


def family() -> dict[str, PruneReport]:
    """The same at several budgets, by name."""
    found: dict[str, PruneReport] = {}
    for i, share in enumerate((0.9, 0.7, 0.5, 0.3, 0.1)):
        value, width = (92.5, 92.3, 91.86, 90.1, 86.2)[i], 1.8
        sure = Confidence(
            metric="accuracy",
            before=(90.6, 94.15),
            after=(value - width, value + width),
            change=(value - 92.43 - 0.9, value - 92.43 + 0.9),
        )
        found[f"macs-{share:g}"] = report(
            macs_asked=share,
            macs_kept=share - 0.003,
            after={"validation": evaluation(value)},
            confidence={"validation": sure},
            latency=[Latency(batch=8, sequence=64, dense_ms=100.0, pruned_ms=100.0 * share, speed_up=0.95 / share)],
            sublayers=[
                replace(s, units=round(s.units_before * share * (0.6 + 0.4 * (j % 5) / 4)))
                for j, s in enumerate(sublayers())
            ],
            limits=[LimitResult(cost="macs", dense=5.4e9, asked=share * 5.4e9, pruned=(share - 0.003) * 5.4e9)],
            pruned=SizeResult(macs=share * 5.4e9, encoder_parameters=1, parameters=round(share * 1e8), bytes=1 << 28),
            warnings=[],
        )
    return found


def vocabulary(**changes: Any) -> VocabularyReport:
    """Of a model with many alphabets."""
    found = VocabularyReport(
        model="many-alphabets",
        algorithm="Unigram",
        tokens_before=250_002,
        tokens=31_337,
        used=30_000,
        put_back=37,
        rows_before=250_037,
        rows=31_372,
        texts=9000,
        held_out=Affected(texts=1000, affected_texts=210, words=20_000, affected_words=500),
        bytes_before=470_000_000,
        bytes=135_000_000,
        tensors={"embeddings.word_embeddings.weight": [31_372, 384]},
        verified="1000 texts get the same tokens",
        seconds={"load": 2.5, "vocabulary": 11.0},
        environment={"torch": "2.13.0"},
    )
    return replace(found, **changes)
