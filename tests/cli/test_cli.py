"""The command line: what a person sees, and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from badness import bad_input
from command import run


def test_prune_then_evaluate(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, progress = run("prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.5", "--output", out)
    assert code == 0
    for word in (
        "accuracy",
        "encoder MACs",
        "parameters",
        "weights file",
        "latency, 1 x 32",
        "residual",
        "converged",
        "verified",
    ):
        assert word in text
    assert "statistics ..." in progress
    code, text, _ = run("evaluate", out, "--task", "sst2", "--data", data)
    assert code == 0
    assert "accuracy" in text
    code, _, errors = run("prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.5", "--output", out)
    assert code == 2
    assert "--overwrite" in errors
    code, _, _ = run("prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.4", "-o", out, "--overwrite")
    assert code == 0


def test_switches_reach_the_method(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    common = ("prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.5", "--output", tmp_path / "out")
    code, text, _ = run(
        *common, "--selection", "fisher", "--recovery", "scale", "--labels", "--solver", "cg", "--ridge", "0.01"
    )
    assert code == 0
    assert " cg " in text


def test_sizes_precision_and_memory_reach_the_run(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    common = ("prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.6", "--output", tmp_path / "out")
    code, _, _ = run(
        *common, "--allocation", "uniform", "--round-to", "auto", "--precision", "float32", "--memory-limit", "0"
    )
    assert code == 0
    report = json.loads((tmp_path / "out" / "result.json").read_text())
    assert report["options"]["budget"]["round_to"] in (1, 8, 16, 32, 64)
    assert report["options"]["calibration"]["memory_limit"] == 0
    for kind in ("attention", "ffn"):
        assert len({s["units"] for s in report["sublayers"] if s["name"].endswith(kind)}) == 1


BAD: list[tuple[tuple[str, ...], str]] = [
    (("--macs", "1.5"), "a share is between 0 and 1, an amount has a suffix"),
    (("--macs", "0"), "between 0 and 1"),
    (("--macs", "half"), "a share of the dense model like 0.5 or 50%, or an amount like 1.2G"),
    (("--params", "12Q"), "'Q' is no suffix for it, use one of: k, m, g"),
    (("--params", "-3"), "an amount like 12M"),
    (("--size", "40"), "a share of the dense model like 0.5 or 50%, or an amount like 40MB"),
    (("--size", "40M"), "'M' is no suffix for it, use one of: b, kb, mb"),
    (("--size", "1kB"), "what cannot be pruned takes"),
    (("--preset", "nope"), "choose one of: default, kwon2022, li2024"),
    (("--recovery", "nope"), "choose one of: none, scale, weights"),
    (("--selection", "nope"), "choose one of: fisher, second-order"),
    (("--solver", "nope"), "choose one of: auto, cg"),
    (("--task", "nope"), "known are cola"),
    (("--data", "/no/such/folder"), "does not exist"),
    (("--text-column", "nope"), "no column 'nope'; it has: idx, sentence, label"),
    (("--calibration-rows", "0"), "at least 1"),
    (("--seed", "-1"), "at least 0"),
    (("--precision", "float8"), "choose one of: auto, float32, bfloat16"),
    (("--memory-limit", "-1"), "memory limit"),
    (("--allocation", "nope"), "choose one of: free, bucketed, uniform, stock"),
    (("--round-to", "nope"), "it must be a number, or auto"),
    (("--round-to", "0"), "at least 1"),
    (("--preset", "kwon2022", "--macs", "0.0001"), "ask for at least"),
]


@pytest.mark.parametrize(("extra", "message"), BAD, ids=[" ".join(e) for e, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    extra: tuple[str, ...], message: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    common = ["prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.5", "--output", out]
    bad_input(" ".join(extra))
    code, text, errors = run(*common, *extra)
    assert code == 2
    assert text == ""
    line = errors.strip().splitlines()[-1]
    assert line.startswith("faster-pruner: error: ")
    assert message in line
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_budget_must_be_given(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    bad_input("no budget")
    code, _, errors = run("prune", checkpoint, "--task", "sst2", "--data", data, "-o", tmp_path / "o")
    assert code == 2
    assert "say what may be left: --macs 0.5, --params 12M, --size 40MB, --latency 8ms" in errors


def test_several_limits_are_met_together(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """A share of the file, a number of parameters, and no share of the MACs."""
    out = tmp_path / "out"
    common = ("prune", checkpoint, "--task", "sst2", "--data", data, "-o", out)
    code, text, _ = run(*common, "--size", "90%", "--params", "11.5k")
    assert code == 0, text
    report = json.loads((out / "result.json").read_text())
    limits = {limit["cost"]: limit for limit in report["limits"]}
    assert limits["bytes"]["asked"] == pytest.approx(0.9 * limits["bytes"]["dense"])
    assert limits["parameters"]["asked"] == 11_500
    assert all(0.8 * limit["asked"] <= limit["pruned"] <= limit["asked"] for limit in limits.values() if limit)
    assert report["pruned"]["parameters"] == limits["parameters"]["pruned"]
    assert report["macs_asked"] is None
    assert (out / "model.safetensors").stat().st_size <= limits["bytes"]["asked"]
    assert "all parameters" in text


def test_evaluation_of_some_rows_and_of_none(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    common = ("prune", checkpoint, "--task", "sst2", "--data", data, "--macs", "0.5", "-o")
    code, _, _ = run(*common, tmp_path / "some", "--eval-rows", "7", "--keep-statistics", tmp_path / "kept")
    assert code == 0
    some = json.loads((tmp_path / "some" / "result.json").read_text())
    assert {split["rows"] for split in some["before"].values()} == {7}
    assert {split["rows"] for split in some["after"].values()} == {7}
    code, text, _ = run(*common, tmp_path / "none", "--no-eval")
    assert code == 0
    assert "accuracy" not in text
    assert json.loads((tmp_path / "none" / "result.json").read_text())["before"] == {}
    # the same model, whatever it is judged on
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("some", "none")]
    assert weights[0] == weights[1]
    rows = ("--task", "sst2", "--data", data)
    code, _, _ = run("cut", tmp_path / "kept", "--macs", "0.4", *rows, "--eval-rows", "5", "-o", tmp_path / "cut")
    assert code == 0
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["after"]["validation"]["rows"] == 5
    code, text, _ = run("evaluate", tmp_path / "cut", *rows, "--eval-rows", "6")
    assert code == 0
    assert " 6 " in text
    for bad, said in (
        (("--eval-rows", "-1"), "rows to evaluate on is -1"),
        (("--eval-rows", "5", "--no-eval"), "give one of them"),
    ):
        bad_input(" ".join(bad))
        code, _, errors = run(*common, tmp_path / "bad", *bad)
        assert code == 2
        assert said in errors
    bad_input("evaluate on no rows")
    code, _, errors = run("evaluate", tmp_path / "cut", *rows, "--eval-rows", "0")
    assert code == 2
    assert "nothing to evaluate on 0 rows" in errors


def test_bad_models_are_one_line_and_exit_code_2(data: Path, tmp_path: Path) -> None:
    import transformers

    transformers.T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path / "t5")
    for model, message in (
        (tmp_path / "t5", "is not a class that transformers has for t5"),
        (tmp_path / "none", "does not exist"),
    ):
        code, _, errors = run(
            "prune", model, "--task", "sst2", "--data", data, "--macs", "0.5", "--output", tmp_path / "o"
        )
        assert code == 2
        assert message in errors
        assert not (tmp_path / "o").exists()


def test_version_and_help() -> None:
    assert run("--version")[:2] == (0, "0.1.0\n")
    code, text, _ = run("prune", "--help")
    assert code == 0
    assert "--macs" in text


def test_ctrl_c_leaves_nothing_half_written(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """A real process, interrupted while it works."""
    tiny.write_jsonl(tmp_path / "data" / "sst2" / "train.jsonl", tiny.make_texts("sst2", 4000, 0))
    tiny.write_jsonl(tmp_path / "data" / "sst2" / "validation.jsonl", tiny.make_texts("sst2", 400, 1) * 50)
    out = tmp_path / "results" / "out"
    command = [sys.executable, "-m", "faster_pruner", "prune", checkpoint, "--task", "sst2", "--macs", "0.5"]
    command += ["--data", tmp_path / "data", "--output", out, "--calibration-rows", "4000"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    with subprocess.Popen(
        [str(c) for c in command],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # whoever started the tests in the background has told them to ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if line.startswith("statistics ..."):
                time.sleep(0.05)
                process.send_signal(signal.SIGINT)
                break
        seen += process.stderr.read()
    assert process.returncode == 130, seen
    assert "interrupted; nothing was written" in seen
    assert "Traceback" not in seen
    assert not (tmp_path / "results").exists()
