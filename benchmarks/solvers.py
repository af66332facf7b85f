"""Compare the solvers on real and on ill-conditioned synthetic systems: time, iterations, residual, error.

python benchmarks/solvers.py            everything, into results/solvers.json; docs/solvers.md is written from it
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import ROWS, calibration_rows, open_model, subject_for, write_result
from faster_pruner.costs.budget import Budget
from faster_pruner.linalg import (
    BlockConjugateGradient,
    Cholesky,
    ConjugateGradient,
    Lsmr,
    RegressionMoments,
    Solver,
    mask_normal_equations,
)
from faster_pruner.method.algorithm import calibrate, cut
from faster_pruner.method.statistics import tokens_of
from faster_pruner.model.lockstep import lockstep
from faster_pruner.options import PRESETS, CalibrationOptions

RIDGE = 1e-3
TOLERANCE = 1e-6
MOST_ITERATIONS = 1000
# A solve that takes longer than this is timed once.
SLOW_SECONDS = 0.5
SOLVERS: dict[str, Solver] = {
    "cg": ConjugateGradient(preconditioner="none", tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS, ridge=RIDGE),
    "jacobi-cg": ConjugateGradient(tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS, ridge=RIDGE),
    "block-cg": BlockConjugateGradient(tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS, ridge=RIDGE),
    "cholesky": Cholesky(ridge=RIDGE),
    "lsmr": Lsmr(damp=0.0, tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS, ridge=RIDGE),
    "lsmr damp 1 (Kwon)": Lsmr(damp=1.0, tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS),
}
# LSMR takes one right-hand side after the other: pointless for hundreds of them.
ONE_BY_ONE = ("lsmr", "lsmr damp 1 (Kwon)")


@dataclass(frozen=True)
class System:
    """One system to solve: matrix [n, n], right side [n] or [n, m], prior."""

    group: str
    name: str
    matrix: Tensor
    right_side: Tensor
    prior: Tensor


def real_systems(task: str) -> Iterator[System]:
    """Mask tuning and weight reconstruction of every sublayer of a real model pruned to half its MACs."""
    opened = open_model(task)
    method = replace(PRESETS["default"], recovery=None)
    rows = calibration_rows(opened, task, ROWS[task], 0)
    calibrated = calibrate(subject_for(opened, task), rows, PRESETS["default"], CalibrationOptions())
    pruned = cut(calibrated, Budget(macs=0.5), method)
    model = pruned.model
    with lockstep(model, pruned.sublayers, calibrated.data.batches) as run:
        for sublayer in pruned.sublayers:
            own = calibrated.statistics[sublayer.name]
            moments = RegressionMoments(sublayer.columns, sublayer.width, torch.device("cpu"))
            for arrival, target in zip(run.arrivals(sublayer), own.targets, strict=True):
                read = own.read[arrival.batch]
                assert arrival.base is not None
                moments.add(tokens_of(arrival.x, read), target - tokens_of(arrival.base, read))
            weight = sublayer.weight(model).detach()
            cross = moments.plain_cross()
            a, b = mask_normal_equations(moments.x.plain(), cross, weight, sublayer.unit_size)
            kind = sublayer.spec.kind
            yield System(f"{task}: mask tuning ({kind})", sublayer.name, a, b, torch.ones_like(b))
            matrix, right_side = moments.normal_equations(intercept=True)
            yield System(f"{task}: weights ({kind})", sublayer.name, matrix, right_side, weight.T.double())


def synthetic_systems(sizes: list[int]) -> Iterator[System]:
    """Symmetric positive definite matrices with a log-uniform spectrum and one right-hand side."""
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
        x = torch.randn(n, generator=generator, dtype=torch.float64)
        for power in range(1, 8):
            spectrum = torch.logspace(0, -power, n, dtype=torch.float64)
            a = (q * spectrum) @ q.T
            yield System(f"synthetic n={n}", f"condition 1e{power}", a, a @ x, torch.zeros_like(x))


def activation_systems(sizes: list[tuple[int, int]]) -> Iterator[System]:
    """Gram matrices with the spectrum of activations (eigenvalues fall as 1 / i), n unknowns and m right-hand sides."""
    for n, m in sizes:
        generator = torch.Generator().manual_seed(n + m)
        x = torch.randn(n + n // 2, n, generator=generator) * torch.arange(1, n + 1).rsqrt()
        mixed = x @ torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
        a = (mixed.T @ mixed).double()
        weight = torch.randn(n, m, generator=generator, dtype=torch.float64)
        right_side = (a @ weight).squeeze(1) if m == 1 else a @ weight
        yield System(f"activations n={n}, {m} right sides", f"{n} x {m}", a, right_side, torch.zeros_like(right_side))


def measure(system: System, name: str, solver: Solver, repeats: int) -> dict[str, Any]:
    """One solver on one system, against the fp64 direct solution of the same (ridged or damped) problem."""
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        found = solver.solve(system.matrix, system.right_side, system.prior)
        times.append(time.perf_counter() - started)
        if times[-1] > SLOW_SECONDS:
            break
    exact = Cholesky(ridge=RIDGE).solve(system.matrix, system.right_side, system.prior).value
    return {
        "group": system.group,
        "system": system.name,
        "n": system.matrix.shape[0],
        "right_sides": 1 if system.right_side.ndim == 1 else system.right_side.shape[1],
        "solver": name,
        "milliseconds": 1000 * statistics.median(times),
        "iterations": found.iterations,
        "status": str(found.status),
        "residual": found.residual,
        "error": float((found.value - exact).norm() / exact.norm()),
    }


def main() -> None:
    """Measure everything and write JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="64,256,1024,4096")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    sizes = [int(n) for n in arguments.sizes.split(",")]
    shapes = [(n, 1) for n in (1024, 2048, 4096)] + [(1024, 256), (3072, 768)]
    everything = [real_systems("sst2"), real_systems("mrpc"), synthetic_systems(sizes), activation_systems(shapes)]
    for systems in everything:
        for system in systems:
            for name, solver in SOLVERS.items():
                if system.right_side.ndim == 2 and name in ONE_BY_ONE:
                    continue
                rows.append(measure(system, name, solver, arguments.repeats))
            print(system.group, system.name, flush=True)
    write_result("solvers", rows)
    write_table(rows)


def write_table(rows: list[dict[str, Any]]) -> None:
    """docs/solvers.md: medians per group."""
    lines = [
        "# Solvers compared",
        "",
        f"Relative ridge {RIDGE:g}, tolerance {TOLERANCE:g}, at most {MOST_ITERATIONS} iterations, float64 throughout. "
        "Time is relative to Cholesky on the same system in the same run; error is against the direct solution of the "
        "ridged system. Medians over the group's systems. Written by `benchmarks/solvers.py` from "
        "`benchmarks/results/solvers.json`.",
        "",
        "| systems | n | right sides | solver | time / Cholesky | iterations | residual | error | converged |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    direct = {(r["group"], r["system"]): r["milliseconds"] for r in rows if r["solver"] == "cholesky"}
    for group in dict.fromkeys(r["group"] for r in rows):
        for name in SOLVERS:
            own = [r for r in rows if r["group"] == group and r["solver"] == name]
            if not own:
                continue
            ratio = statistics.median(r["milliseconds"] / direct[r["group"], r["system"]] for r in own)
            cells = [
                group,
                _span([r["n"] for r in own]),
                str(own[0]["right_sides"]),
                name,
                f"{ratio:.2f}",
                f"{statistics.median(r['iterations'] for r in own):.0f}",
                f"{statistics.median(r['residual'] for r in own):.1e}",
                f"{statistics.median(r['error'] for r in own):.1e}",
                f"{sum(r['status'] == 'converged' for r in own)} of {len(own)}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    Path(__file__).parents[1].joinpath("docs", "solvers.md").write_text("\n".join(lines) + "\n")


def _span(values: list[int]) -> str:
    """Smallest to largest."""
    return str(values[0]) if min(values) == max(values) else f"{min(values)}-{max(values)}"


if __name__ == "__main__":
    main()
