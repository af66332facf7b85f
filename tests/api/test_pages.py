"""report.html of real runs: of every kind of model, written with the result or again later."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

import colours
import tiny
from badness import bad_input
from command import run
from faster_pruner import CalibrationOptions, Data, Distillation, Output, cut_again, load, prune, prune_model, sweep
from faster_pruner import prune_vocabulary as fewer_tokens
from faster_pruner.api import sweep as sweeping
from faster_pruner.errors import OutputError
from faster_pruner.host.marks import is_our_file, strangers
from faster_pruner.report import print_vocabulary
from faster_pruner.results import strict_json

pytestmark = pytest.mark.usefixtures("quick_latency")
SMALL = CalibrationOptions(rows=32, max_length=9)


def sst2(folder: Path) -> Data:
    return Data(task="sst2", folder=folder)


@pytest.fixture(scope="module")
def result(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a run wrote."""
    from faster_pruner.runtimes import timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_FEWEST_PAIRS", 2)
        patch.setattr(timing, "_SECONDS_PER_SHAPE", 0.0)
        folder = tmp_path_factory.mktemp("results") / "one"
        prune(checkpoint, sst2(data), macs=0.5, output=folder, calibration=SMALL)
    return folder


def shown(folder: Path) -> ElementTree.Element:
    """The page of a folder."""
    return ElementTree.fromstring((folder / "report.html").read_text(encoding="utf-8").partition("\n")[2])


def sections(folder: Path) -> list[str]:
    return ["".join(each.itertext()) for each in shown(folder).iter("h2")]


def text_of(folder: Path) -> str:
    return " ".join(" ".join(shown(folder).itertext()).split())


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_run_writes_its_page(result: Path) -> None:
    found = told(result)
    assert "report.html" in found["files"]
    assert sections(result) == ["Quality", "Size and speed", "Layer by layer", "Calibration", "Time", "Provenance"]
    text = text_of(result)
    for s in found["sublayers"]:
        assert f"{s['units']} of {s['units_before']}" in text
        assert s["unit"] in ("head", "neuron")
        assert s["status"] == "converged"
        assert 0 <= s["solve_residual"] < 1e-9
        assert f"{s['residual_before']:.3f} {s['residual_after']:.3f}" in text
    assert found["calibration_hash"] in text
    after = found["after"]["validation"]["metrics"]["accuracy"]
    assert f"{after:.2f}" in text
    # the rows are of 5 to 13 tokens with [CLS] and [SEP]: those beyond the limit were cut
    lengths = found["lengths"]
    assert sum(lengths["rows"]) == 32
    assert lengths["longest"] == 9
    assert 0 < lengths["truncated"] < 32
    assert lengths["rows"][-1] >= lengths["truncated"]
    assert f"{lengths['truncated']} ({lengths['truncated'] / 32:.1%})" in text


def test_the_kept_heads_are_those_of_the_masks(result: Path) -> None:
    masks = json.loads((result / "masks.json").read_text())
    groups = {g[0].text: g for g in shown(result).iter("g") if len(g) and g[0].tag == "title" and g[0].text}
    for name, bits in masks.items():
        if name.endswith("attention"):
            (group,) = (g for hint, g in groups.items() if hint.startswith(f"{name}: ") and "kept" in hint)
            cells = [each.get("class") for each in group.iter("rect")]
            assert cells == ["attention" if bit == "1" else "track" for bit in bits]


def test_the_same_run_gives_the_same_page_but_for_times(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faster_pruner.api import outcome

    monkeypatch.setattr(outcome, "measure", lambda *_a, **_k: [])
    monkeypatch.setattr("faster_pruner.progress.time.perf_counter", lambda: 1.0)
    for name in "ab":
        prune(checkpoint, sst2(data), macs=0.5, output=tmp_path / name, calibration=SMALL)
    assert (tmp_path / "a" / "report.html").read_bytes() == (tmp_path / "b" / "report.html").read_bytes()
    assert "not timed" in text_of(tmp_path / "a")


def test_without_evaluation_and_cut_again(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output = Output(folder=tmp_path / "out", statistics=tmp_path / "kept")
    prune(checkpoint, Data(task="sst2", folder=data, judged=0), macs=0.5, output=output, calibration=SMALL)
    assert "Quality" not in sections(tmp_path / "out")
    assert "not evaluated" in text_of(tmp_path / "out")
    cut_again(tmp_path / "kept", macs=0.4, output=tmp_path / "again")
    # the kept statistics know how long the rows were, and how many were cut
    assert told(tmp_path / "again")["lengths"] == told(tmp_path / "out")["lengths"]
    assert sections(tmp_path / "again") == sections(tmp_path / "out")


def test_a_model_in_memory(checkpoint: Path, tmp_path: Path) -> None:
    batch = tiny.make_batches(tiny.make_rows(16), 400)[0]
    prune_model(load(checkpoint), [batch.inputs]).save(tmp_path / "out")
    lengths = told(tmp_path / "out")["lengths"]
    assert (sum(lengths["rows"]), lengths["truncated"]) == (16, None)
    assert batch.mask is not None
    assert lengths["longest"] == int(batch.mask.sum(dim=1).max())
    assert "not known" in text_of(tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_with_a_distillation(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    rows = tiny.save_rows(tmp_path / "many", "sst2", train=160, validation=16)
    how = Distillation(rows=64, epochs=3, learning_rate=1e-3, rows_per_step=8, held_out=24)
    out = tmp_path / "out"
    report = prune(checkpoint, sst2(rows), macs=0.3, output=out, calibration=SMALL, distillation=how).report
    assert report.distillation is not None
    assert "Distillation" in sections(out)
    assert f"{report.distillation.before:.4g}" in text_of(out)


def test_images(tmp_path: Path) -> None:
    vit = colours.save_checkpoint(tmp_path / "vit")
    rows = Data(folder=colours.save_images(tmp_path / "images"))
    prune(vit, rows, macs=0.5, output=tmp_path / "out", calibration=CalibrationOptions(rows=24, tokens_per_batch=64))
    lengths = told(tmp_path / "out")["lengths"]
    assert (lengths["edges"], lengths["rows"], lengths["truncated"]) == ([5, 6], [24], 0)
    assert "accuracy, validation" in text_of(tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_embeddings(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    tiny.make_model().base_model.save_pretrained(tmp_path / "encoder")
    tiny.make_tokenizer().save_pretrained(tmp_path / "encoder")
    tiny.write_jsonl(tmp_path / "texts.jsonl", [{"text": f"w{i} w{i % 7} w{i % 11} w{i % 13}"} for i in range(80)])
    rows = Data(file=tmp_path / "texts.jsonl", pooling="mean")
    prune(tmp_path / "encoder", rows, macs=0.5, output=tmp_path / "out", calibration=SMALL)
    assert "neighbours, validation" in text_of(tmp_path / "out")
    assert told(tmp_path / "out")["lengths"]["truncated"] == 0


def test_a_vocabulary(checkpoint: Path, result: Path, tmp_path: Path) -> None:
    texts = [f"w{i} w{i + 1}" for i in range(20)]
    found = fewer_tokens(checkpoint, texts, output=tmp_path / "tokens").report
    assert sections(tmp_path / "tokens") == ["Vocabulary", "Time", "Provenance"]
    assert f"{found.tokens} of {found.tokens_before}" in text_of(tmp_path / "tokens")
    assert "report.html" in told(tmp_path / "tokens")["files"]
    # of a model that was pruned before, both are told
    fewer_tokens(result, texts, output=tmp_path / "both")
    assert {"Quality", "Vocabulary", "Layer by layer"} <= set(sections(tmp_path / "both"))
    assert strangers(tmp_path / "both") == []


def test_a_vocabulary_is_worth_more_than_its_page(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ArithmeticError("a name nobody can draw")

    monkeypatch.setattr("faster_pruner.api.vocabulary.page_of", fail)
    found = fewer_tokens(checkpoint, ["w1 w2"], output=tmp_path / "out", held_out=0).report
    assert not (tmp_path / "out" / "report.html").exists()
    load(tmp_path / "out")
    # and that is said, as of every other result
    (warning,) = found.warnings
    assert "there is no report.html" in warning
    assert "a name nobody can draw" in warning
    assert told(tmp_path / "out")["vocabulary"]["warnings"] == [warning]
    console = Console(width=80, file=io.StringIO())
    print_vocabulary(found, console)
    assert "note: there is no report.html" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_sweep_has_a_page_of_all_and_one_of_each(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "family"
    found = sweep(checkpoint, sst2(data), macs=[0.7, 0.4], output=out, calibration=SMALL)
    assert found.page == out / "report.html"
    assert found.warnings == []
    links = [each.get("href") for each in shown(out).iter("a")]
    assert links == ["macs-0.7/report.html", "macs-0.4/report.html"]
    assert all((out / link).is_file() for link in links if link)
    for report in found.reports:
        assert f"{report.after['validation'].value:.2f}" in text_of(out)
        assert f"{report.macs_kept:.1%}" in text_of(out)
    # it is found to be ours when it is written again, and a stranger's is not
    again = Output(folder=out, overwrite=True)
    sweep(checkpoint, sst2(data), macs=[0.7], output=again, calibration=SMALL)
    assert "macs-0.4" not in text_of(out)
    (out / "report.html").write_text("<p>mine</p>")
    bad_input("a sweep into a folder with somebody's report.html")
    with pytest.raises(OutputError, match="no report of ours"):
        sweep(checkpoint, sst2(data), macs=[0.7], output=again, calibration=SMALL)
    assert (out / "report.html").read_text() == "<p>mine</p>"


def test_a_sweep_is_worth_more_than_its_page(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ArithmeticError("this cannot\nbe drawn")

    monkeypatch.setattr(sweeping, "family_page", fail)
    options = ("--task", "sst2", "--data", data, "--macs", "0.5", "-o", tmp_path / "out", "--calibration-rows", "32")
    code, text, _ = run("sweep", checkpoint, *options)
    assert code == 0
    assert "there is no report.html: this cannot be drawn" in " ".join(text.split())
    load(tmp_path / "out" / "macs-0.5")


def test_it_can_be_written_again(result: Path, tmp_path: Path) -> None:
    before = (result / "report.html").read_bytes()
    (result / "report.html").unlink()
    code, text, _ = run("report", result, "--pictures", tmp_path / "pictures")
    assert code == 0
    written = [Path(each) for each in text.split()]
    assert written[0] == result / "report.html"
    assert written[0].read_bytes() == before
    assert is_our_file(written[0])
    names = {file.name for file in (tmp_path / "pictures").iterdir()}
    assert names == {file.name for file in written[1:]}
    assert {"kept.svg", "residuals.svg", "sizes.svg", "times.svg", "lengths.svg"} <= names
    for file in written[1:]:
        root = ElementTree.parse(file).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert not re.search(r"href|url\(", file.read_text())


def test_a_folder_without_a_list_of_it_is_still_ours(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """A page that was written later is not in the list of the run, and does not keep the folder from being replaced."""
    prune(checkpoint, sst2(data), macs=0.5, output=tmp_path / "out", calibration=SMALL)
    found = told(tmp_path / "out")
    found["files"].remove("report.html")
    (tmp_path / "out" / "result.json").write_text(strict_json(found))
    (tmp_path / "out" / "report.html").unlink()
    assert run("report", tmp_path / "out")[0] == 0
    assert strangers(tmp_path / "out") == []
    target = Output(folder=tmp_path / "out", overwrite=True)
    prune(checkpoint, sst2(data), macs=0.4, output=target, calibration=SMALL)
    (tmp_path / "out" / "mine.html").write_text("<p>mine</p>")
    assert strangers(tmp_path / "out") == ["mine.html"]


def test_what_is_no_folder_of_results_is_said(result: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    other = told(result)
    for name, model in (("a", "one"), ("b", "another")):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        (tmp_path / "mixed" / name / "result.json").write_text(strict_json({**other, "model": model}))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "result.json").write_text(strict_json({**other, "dense": {**other["dense"], "bytes": 0}}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "result.json").write_text(strict_json(other))
    (tmp_path / "mine" / "report.html").write_text("<p>mine</p>")
    for folder, reason in (
        (tmp_path / "nowhere", "give a folder of results"),
        (tmp_path / "empty", "give a folder of results"),
        (data, "give a folder of results"),
        (tmp_path / "mixed", "2 models or tasks"),
        (tmp_path / "odd", "makes no page"),
        (tmp_path / "mine", "no report of ours"),
    ):
        bad_input(f"report of {folder.name}")
        code, _, errors = run("report", folder)
        assert code == 2
        assert reason in errors, errors
        assert len(errors.splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "mine" / "report.html").read_text() == "<p>mine</p>"
