"""What a run takes on paper: bytes, operations and seconds for models that no machine here holds. Nothing is measured.

python benchmarks/paper.py                                       the tables, for Llama-2-7B and Llama-3-70B
python benchmarks/paper.py --tokens 1048576 --keep 0.25          other calibration sets and budgets
python benchmarks/paper.py --show                                docs/scale.md

Every formula counts what the default method does (method/statistics.py, method/recovery.py, selection/elimination.py),
per sublayer with n columns, d outputs and k columns that are left; a multiplication and an addition are two operations.
What a machine reaches is assumed (`Machine`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from common import DOCS, write_table

NAME, PARTS = "paper", "paper-parts"
SINGLE, HALF, DOUBLE = 4, 2, 8
# Matrices that an elimination holds (method/memory.py), and tokens per column of the widest sublayer that moments need.
MATRICES, MOMENT_TOKENS = 4, 8


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is assumed of each GPU and of the machine that it is in.

    Attributes:
        passes: operations a second of the passes, in bfloat16.
        products: of the moments, whose factors are rounded to TF32.
        double: of eliminations and solves, in float64.
        disk: bytes a second of the disk, which all GPUs share.
        links: bytes a second that a GPU sends to the next one, by name.
        memory: bytes of a GPU.
    """

    passes: float = 300e12
    products: float = 150e12
    double: float = 30e12
    disk: float = 3e9
    links: tuple[tuple[str, float], ...] = (("NVLink, 300 GB/s", 300e9), ("PCIe, 20 GB/s", 20e9))
    memory: float = 80e9


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """One of each layer.

    Attributes:
        name: of it.
        n: columns of its output projection.
        d: outputs.
        rows: of its producers, altogether.
        heads: columns of the heads, which attention holds queries, keys, values and outputs of; 0 for an FFN.
        grouped: whether a unit has more than one column.
    """

    name: str
    n: int
    d: int
    rows: int
    heads: int = 0
    grouped: bool = False

    @property
    def weights(self) -> int:
        """Of the projection and its producers."""
        return (self.n + self.rows) * self.d


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder of the Llama family.

    Attributes:
        name: of it.
        layers: how many.
        d: width.
        queries: rows of the queries, and columns of the attention's output projection.
        keys: rows of the keys, and of the values.
        neurons: of an FFN, which is gated.
        vocabulary: tokens; embeddings and head are two matrices.
    """

    name: str
    layers: int
    d: int
    queries: int
    keys: int
    neurons: int
    vocabulary: int

    @property
    def sublayers(self) -> tuple[Sublayer, Sublayer]:
        """Those of one layer."""
        rows = self.queries + 2 * self.keys
        return (
            Sublayer(name="attention", n=self.queries, d=self.d, rows=rows, heads=self.queries, grouped=True),
            Sublayer(name="FFN", n=self.neurons, d=self.d, rows=2 * self.neurons),
        )

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        return sum(s.weights for s in self.sublayers)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.vocabulary * self.d

    @property
    def parameters(self) -> int:
        """All weights, but for those of the normalisations."""
        return self.layers * self.layer + 2 * self.head


LLAMAS = (
    Shape(name="Llama-2-7B", layers=32, d=4096, queries=4096, keys=4096, neurons=11008, vocabulary=32000),
    Shape(name="Llama-3-70B", layers=80, d=8192, queries=8192, keys=1024, neurons=28672, vocabulary=128256),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one sublayer costs; bytes and operations.

    Attributes:
        statistics, alignment, regression: sums that all processes add up.
        weights: what the first process hands to the others.
        moments: products of one token whose moments are taken, and of one that the regression is fitted on.
        elimination: of the loss curve, float64.
        solve: of alignment and regression, float64.
    """

    statistics: float
    alignment: float
    regression: float
    weights: float
    moments: tuple[float, float]
    elimination: float
    solve: float

    @classmethod
    def of(cls, s: Sublayer, keep: float) -> Part:
        """Those of a sublayer of which a share is kept."""
        n, d, k = s.n, s.d, keep * s.n
        # Cholesky factor and inverse; downdates of the inverse and of V; V = W' G^(1/2); scores of units of columns
        elimination = n**3 + 2 / 3 * n**3 + d * n**2 + (d**3 / 3 + 2 * n * d**2) + (n**2 * d / 2 if s.grouped else 0)
        # factor, solution, its residual, and the error before and after; maps are folded into the producers
        regression = k**3 / 3 + 8 * k**2 * d
        alignment = d**3 / 3 + 8 * d**3 + 2 * keep * s.rows * d**2
        return cls(
            statistics=SINGLE * (n**2 + d**2),
            alignment=SINGLE * 2 * d**2,
            regression=SINGLE * k * (k + d),
            weights=SINGLE * (k + keep * s.rows) * d,
            # on and above the diagonal: n^2 for A, d^2 for G; alignment d^2 + 2 d^2; regression k^2 + 2 k d
            moments=(n**2 + d**2 + 3 * d**2, k**2 + 2 * k * d),
            elimination=elimination,
            solve=regression + alignment,
        )


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A run.

    Attributes:
        shape: of the model.
        processes: one a GPU.
        tokens: of the calibration set.
        block: tokens of a row.
        keep: share of every sublayer that is left.
        machine: what it runs on.
    """

    shape: Shape
    processes: int
    tokens: int
    block: int
    keep: float
    machine: Machine

    @cached_property
    def parts(self) -> list[Part]:
        """Of the sublayers of one layer."""
        return [Part.of(s, self.keep) for s in self.shape.sublayers]

    @property
    def differentiated(self) -> int:
        """Tokens that the backward runs for."""
        return min(self.tokens, MOMENT_TOKENS * max(s.n for s in self.shape.sublayers))

    @property
    def checkpoint(self) -> float:
        """Bytes of the weights file, in bfloat16."""
        return HALF * self.shape.parameters

    @property
    def walked(self) -> float:
        """Bytes that are read where a layer is loaded when a pass gets there: forward, backward, recovery."""
        return self.checkpoint + 2 * HALF * self.shape.layers * self.shape.layer

    @property
    def in_memory(self) -> float:
        """Bytes of a process that holds both models, all statistics and one elimination."""
        statistics = self.shape.layers * sum(part.statistics for part in self.parts)
        return 2 * SINGLE * self.shape.parameters + statistics + self._elimination

    @property
    def by_layer(self) -> float:
        """The same with embeddings (or the head), two layers and one layer's statistics."""
        layers = SINGLE * (self.shape.head + 2 * self.shape.layer)
        return layers + sum(part.statistics for part in self.parts) + self._elimination

    @property
    def _elimination(self) -> float:
        return MATRICES * DOUBLE * max(s.n for s in self.shape.sublayers) ** 2

    @property
    def hidden(self) -> float:
        """Bytes of targets and producer inputs, of all processes."""
        inner = 2 * self.shape.layers - 2
        return HALF * self.shape.d * (inner * (self.tokens + self.differentiated) + self.tokens)

    @property
    def suspended(self) -> float:
        """Bytes that the suspended forwards hold at most, of all processes."""
        held = [HALF * max(s.n, 4 * s.heads) for s in self.shape.sublayers]
        return self.tokens * (self.keep * max(held) + 2 * SINGLE * self.shape.d)

    @property
    def spilled(self) -> float:
        """Bytes of these that memory does not hold where passes go layer by layer; files take them, and give them."""
        room = self.processes * max(0.0, self.machine.memory - self.by_layer)
        return max(0.0, self.hidden + self.suspended - room)

    @property
    def passes(self) -> float:
        """Operations: dense forward of all tokens, backward of some to the activations, the smaller model's forward."""
        body = self.shape.layers * (2 * self.shape.layer + 2 * self.block * self.shape.queries)
        dense = (body + 2 * self.shape.head) * (self.tokens + self.differentiated)
        return dense + self.keep * body * self.tokens

    @property
    def moments(self) -> float:
        """Operations of all second moments and regressions."""
        some, every = (sum(part.moments[i] for part in self.parts) for i in (0, 1))
        return self.shape.layers * (self.differentiated * some + self.tokens * every)

    @property
    def eliminations(self) -> float:
        """Operations in float64."""
        return self.shape.layers * sum(part.elimination for part in self.parts)

    @property
    def solves(self) -> float:
        """Operations in float64, all of the first process."""
        return self.shape.layers * sum(part.solve for part in self.parts)

    @property
    def sums(self) -> float:
        """Bytes that are added up over all processes."""
        return self.shape.layers * sum(part.statistics + part.alignment + part.regression for part in self.parts)

    @property
    def handed(self) -> float:
        """Bytes of weights that the first process hands to the others."""
        return self.shape.layers * sum(part.weights for part in self.parts)

    @property
    def wire(self) -> float:
        """Bytes through each GPU's link: a ring's 2 (N - 1) / N of every sum, and every weight once."""
        if self.processes == 1:
            return 0.0
        return 2 * (self.processes - 1) / self.processes * self.sums + self.handed

    def seconds(self) -> dict[str, float]:
        """By part of the run, all but the exchanges."""
        machine, count = self.machine, self.processes
        return {
            "weights read layer by layer": self.walked / machine.disk,
            "spilled, written and read": 2 * self.spilled / machine.disk,
            "passes": self.passes / count / machine.passes,
            "moments": self.moments / count / machine.products,
            "eliminations": self.eliminations / count / machine.double,
            "solves": self.solves / machine.double,
        }


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def run_lines(papers: Sequence[Paper]) -> list[str]:
    """The table of whole runs."""
    machine = papers[0].machine
    lines = [
        "| | " + " | ".join(f"{p.shape.name}, {p.processes} GPU{'s' * (p.processes > 1)}" for p in papers) + " |",
        "|---|" + "---|" * len(papers),
    ]

    def line(what: str, values: Sequence[float], unit: float) -> None:
        lines.append(f"| {what} | " + " | ".join(number(value / unit) for value in values) + " |")

    line("weights file (bfloat16), GB", [p.checkpoint for p in papers], 1e9)
    line("read by each process layer by layer, GB", [p.walked for p in papers], 1e9)
    line("a process with everything in memory, GB", [p.in_memory for p in papers], 1e9)
    line("a process layer by layer, GB", [p.by_layer for p in papers], 1e9)
    line("hidden states, all processes, GB", [p.hidden for p in papers], 1e9)
    line("suspended forwards, all processes, GB", [p.suspended for p in papers], 1e9)
    line("of these in files, GB", [p.spilled for p in papers], 1e9)
    line("through each link, GB", [p.wire for p in papers], 1e9)
    line("passes, PFLOP", [p.passes for p in papers], 1e15)
    line("moments, PFLOP", [p.moments for p in papers], 1e15)
    line("eliminations, PFLOP (float64)", [p.eliminations for p in papers], 1e15)
    line("solves, PFLOP (float64)", [p.solves for p in papers], 1e15)
    spent = [p.seconds() for p in papers]
    for part in spent[0]:
        line(f"{part}, s", [each[part] for each in spent], 1.0)
    for name, speed in machine.links:
        line(f"exchanges by {name}, s", [p.wire / speed for p in papers], 1.0)
    for name, speed in machine.links:
        whole = [sum(each.values()) + p.wire / speed for p, each in zip(papers, spent, strict=True)]
        line(f"**all, {name.split(',')[0]}, s**", whole, 1.0)
    return lines


def part_lines(papers: Sequence[Paper]) -> list[str]:
    """The table of one layer's sublayers: bytes, and operations that do not depend on the tokens."""
    lines = [
        "| model, sublayer | n | k | statistics, MB | alignment, MB | regression, MB | weights, MB "
        "| elimination, TFLOP | solves, TFLOP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for paper in {paper.shape.name: paper for paper in papers}.values():
        for s, part in zip(paper.shape.sublayers, paper.parts, strict=True):
            sizes = [part.statistics, part.alignment, part.regression, part.weights]
            cells = [f"{size / 1e6:.0f}" for size in sizes]
            cells += [number(part.elimination / 1e12), number(part.solve / 1e12)]
            lines.append(
                f"| {paper.shape.name}, {s.name} | {s.n} | {paper.keep * s.n:.0f} | " + " | ".join(cells) + " |"
            )
    return lines


def main() -> None:
    """Print, or write the page."""
    machine = Machine()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128 * 2048, help="of the calibration set")
    parser.add_argument("--block", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--keep", type=float, default=0.5, help="share of every sublayer that is left")
    parser.add_argument("--gpus", default="1,8")
    parser.add_argument("--passes", type=float, default=machine.passes, help="operations a second in bfloat16")
    parser.add_argument("--products", type=float, default=machine.products, help="in TF32")
    parser.add_argument("--double", type=float, default=machine.double, help="in float64")
    parser.add_argument("--disk", type=float, default=machine.disk, help="bytes a second")
    parser.add_argument("--show", action="store_true", help="write docs/scale.md")
    given = parser.parse_args()
    machine = Machine(passes=given.passes, products=given.products, double=given.double, disk=given.disk)
    papers = [
        Paper(shape=shape, processes=int(n), tokens=given.tokens, block=given.block, keep=given.keep, machine=machine)
        for shape in LLAMAS
        for n in given.gpus.split(",")
    ]
    for name, lines in ((PARTS, part_lines(papers)), (NAME, run_lines(papers))):
        print("\n".join(lines), end="\n\n")
        if given.show:
            write_table(DOCS / "scale.md", name, lines)


if __name__ == "__main__":
    main()
