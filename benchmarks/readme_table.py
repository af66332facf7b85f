"""Write the accuracy table of README.md from benchmarks/results/accuracy-*.json."""

from __future__ import annotations

from pathlib import Path

from common import read_result

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- table: accuracy -->\n", "<!-- end -->"
PRESETS = ("kwon2022", "li2024", "default")


def main() -> None:
    """Rewrite the lines between the two markers."""
    cells: dict[tuple[str, str, float], str] = {}
    for task in ("sst2", "mrpc"):
        for row in read_result(f"accuracy-{task}")["table"]:
            text = f"{row['mean']['accuracy']:.2f} ± {row['spread']['accuracy']:.2f}"
            cells[task, row["method"], row["macs"]] = text
    columns = [(task, preset) for task in ("sst2", "mrpc") for preset in PRESETS]
    names = {"sst2": "SST-2", "mrpc": "MRPC"}
    lines = ["| encoder MACs kept | " + " | ".join(f"{names[t]} `{p}`" for t, p in columns) + " |", "|---" * 7 + "|"]
    for macs in sorted({key[2] for key in cells}, reverse=True):
        lines.append(f"| {macs:.0%} | " + " | ".join(cells.get((t, p, macs), "") for t, p in columns) + " |")
    text = README.read_text()
    head, rest = text.split(START)
    README.write_text(head + START + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()
