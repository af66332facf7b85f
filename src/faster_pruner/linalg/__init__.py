"""Tensors only: Gram matrices and the solvers of the recovery stage. Knows no model."""

from faster_pruner.linalg.alignment import Alignment, fit_alignment
from faster_pruner.linalg.block_cg import BlockConjugateGradient
from faster_pruner.linalg.cg import ConjugateGradient
from faster_pruner.linalg.direct import Cholesky
from faster_pruner.linalg.gram import RegressionMoments, SecondMoment
from faster_pruner.linalg.lsmr import Lsmr
from faster_pruner.linalg.registry import make_solver, measured_rule, solve, solve_or_fall_back
from faster_pruner.linalg.solve import Solution, Solver, Status
from faster_pruner.linalg.tuning import mask_normal_equations

__all__ = [
    "Alignment",
    "BlockConjugateGradient",
    "Cholesky",
    "ConjugateGradient",
    "Lsmr",
    "RegressionMoments",
    "SecondMoment",
    "Solution",
    "Solver",
    "Status",
    "fit_alignment",
    "make_solver",
    "mask_normal_equations",
    "measured_rule",
    "solve",
    "solve_or_fall_back",
]
