"""Classifiers of images and sounds, from files to a verified smaller checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import colours
import sounds
import tiny
from badness import bad_input
from command import run
from faster_pruner import CalibrationOptions, Columns, Data, Output, cut_again, evaluate, load, prune
from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.errors import DataError, OptionError

pytestmark = pytest.mark.usefixtures("quick_latency")
SMALL = CalibrationOptions(rows=24, tokens_per_batch=64)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT that knows its colours, and a file of its processor as nobody of us would write it."""
    folder = colours.save_checkpoint(tmp_path_factory.mktemp("models") / "vit")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "own": 1}, indent=7))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders of classes."""
    return colours.save_images(tmp_path_factory.mktemp("images"))


def test_a_folder_of_images(vit: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = prune(vit, Data(folder=images), macs=0.5, output=out, calibration=SMALL)
    report = result.report
    assert report.task == "image-classification"
    assert report.macs_kept <= 0.5
    assert "bit-equal" in report.verified
    assert report.calibration_rows == 24
    assert report.before["validation"].metrics["accuracy"] == 100
    # half of the multiply-accumulates are enough to tell three colours apart
    assert report.after["validation"].metrics["accuracy"] > 90
    assert list(report.after["validation"].metrics) == ["accuracy", "loss", "calibration_error"]
    assert [(shape.batch, shape.sequence) for shape in report.latency] == [(1, 5), (32, 5)]
    assert report.warnings == []
    assert evaluate(out, Data(folder=images)) == report.after
    # the processor is what it was, and everybody's
    name = "preprocessor_config.json"
    assert (out / name).read_bytes() == (vit / name).read_bytes()
    assert not hasattr(result, "tokenizer")
    with quiet_transformers():
        processor = transformers.AutoImageProcessor.from_pretrained(out)
        model = transformers.AutoModelForImageClassification.from_pretrained(out, trust_remote_code=True)
    pipeline = transformers.pipeline("image-classification", model=model, image_processor=processor)
    for colour in colours.COLOURS:
        assert pipeline(colours.make_image(colour, 77))[0]["label"] == colour
    assert type(result.processor) is type(processor)
    assert "AutoModelForImageClassification" in (out / "README.md").read_text()
    assert "pipeline_tag: image-classification" in (out / "README.md").read_text()


def test_parquet_files_of_images_give_the_same(vit: Path, images: Path, tmp_path: Path) -> None:
    """Also where the data number their classes differently; the order of the rows is that of the folders here."""
    import datasets

    names = sorted(colours.COLOURS)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for split in ("train", "validation"):
        files = sorted((images / split).rglob("*.*"))
        rows = [{"image": {"bytes": f.read_bytes(), "path": None}, "label": f.parent.name} for f in files]
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / f"{split}.parquet"))
    one = prune(vit, Data(folder=images), macs=0.5, calibration=SMALL).report
    other = prune(vit, Data(task="image-classification", folder=tmp_path), macs=0.5, calibration=SMALL).report
    assert one.calibration_hash == other.calibration_hash
    assert one.after == other.after


def test_files_that_name_images(vit: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "data")
    for split in ("train", "validation"):
        files = sorted((tmp_path / "data" / split).rglob("*.*"))
        rows = [{"photo": f.relative_to(tmp_path / "data").as_posix(), "kind": f.parent.name.upper()} for f in files]
        tiny.write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    columns = Columns(text="photo", label="kind")
    found = evaluate(vit, Data(folder=tmp_path / "data", columns=columns))
    assert found == evaluate(vit, Data(folder=images))


def test_only_the_rows_that_are_drawn_are_opened(vit: Path, images: Path, tmp_path: Path, monkeypatch) -> None:
    opened: list[object] = []
    before = Image.open

    def count(file: object, *arguments: object) -> object:
        opened.append(file)
        return before(file, *arguments)

    monkeypatch.setattr(Image, "open", count)
    prune(vit, Data(folder=images), macs=0.5, calibration=CalibrationOptions(rows=9))
    assert len(opened) == 9 + 24


@pytest.mark.parametrize("method", ["kwon2022", "li2024"])
def test_presets_that_take_labels(vit: Path, images: Path, method: str, tmp_path: Path) -> None:
    report = prune(vit, Data(folder=images), macs=0.6, method=method, calibration=SMALL, output=tmp_path / "out").report
    assert report.macs_kept <= 0.6
    assert "bit-equal" in report.verified


def test_another_budget_from_kept_statistics(vit: Path, images: Path, tmp_path: Path) -> None:
    kept = Output(folder=tmp_path / "one", statistics=tmp_path / "kept")
    prune(vit, Data(folder=images), macs=0.6, output=kept, calibration=SMALL)
    again = cut_again(tmp_path / "kept", macs=0.5, output=tmp_path / "two", data=Data(folder=images)).report
    whole = prune(vit, Data(folder=images), macs=0.5, output=tmp_path / "three", calibration=SMALL).report
    assert again.after == whole.after
    names = {file.name for file in (tmp_path / "two").iterdir()}
    assert names == {file.name for file in (tmp_path / "three").iterdir()}
    assert "preprocessor_config.json" in names


def test_images_that_are_calibrated_on_and_judged_by_are_told(vit: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "train", tmp_path / "train")
    shutil.copytree(images / "train", tmp_path / "validation")
    report = prune(vit, Data(folder=tmp_path), macs=0.5).report
    assert report.warnings == [
        "30 of 30 validation rows (100%) are calibration rows, too: the metrics flatter the pruned model"
    ]


def test_without_labels(vit: Path, images: Path, tmp_path: Path) -> None:
    """Label-free calibration takes images that lie in no class."""
    shutil.copytree(images / "validation", tmp_path / "validation")
    (tmp_path / "train").mkdir()
    for i, file in enumerate(sorted((images / "train").rglob("*.*"))):
        shutil.copy(file, tmp_path / "train" / f"{i}{file.suffix}")
    assert prune(vit, Data(folder=tmp_path), macs=0.5).report.after["validation"].value > 90
    bad_input("no labels")
    with pytest.raises(DataError, match="the data has no column 'label'; it has: image"):
        prune(vit, Data(folder=tmp_path), macs=0.5, method="kwon2022")


def test_on_the_command_line(vit: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--task", "image-classification", "--data", images)
    code, text, _ = run("prune", vit, *given, "--macs", "0.5", "--output", out)
    assert code == 0
    assert "accuracy" in text
    assert "latency, 1 x 5" in text
    code, text, _ = run("evaluate", out, *given)
    assert code == 0
    bad_input("a text task for images")
    code, _, errors = run("prune", vit, "--task", "sst2", "--data", images, "--macs", "0.5", "--output", tmp_path / "x")
    assert code == 2
    assert "made for image-classification" in errors
    (tmp_path / "bad" / "train" / "red").mkdir(parents=True)
    for i in range(9):
        (tmp_path / "bad" / "train" / "red" / f"{i}.png").write_bytes(b"-")
    bad_input("damaged images on the command line")
    code, _, errors = run("prune", vit, "--data", tmp_path / "bad", "--macs", "0.5", "--output", tmp_path / "x")
    assert code == 2
    assert ".png' cannot be opened as an image" in " ".join(errors.split())


def test_classes_that_the_model_does_not_have(vit: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data" / "validation" / "red").rename(tmp_path / "data" / "validation" / "crimson")
    bad_input("a class that the model does not have")
    with pytest.raises(DataError, match=r"label 'crimson' .* is not one of the model's: green, blue, red"):
        prune(vit, Data(folder=tmp_path / "data"), macs=0.5)


@pytest.mark.parametrize("spectrograms", [False, True], ids=["samples", "spectrograms"])
def test_sounds(tmp_path: Path, spectrograms: bool) -> None:
    model = sounds.save_checkpoint(tmp_path / "model", spectrograms=spectrograms)
    data, out = Data(folder=sounds.save_rows(tmp_path / "data")), tmp_path / "out"
    report = prune(model, data, macs=0.5, output=out).report
    assert report.task == "audio-classification"
    assert report.macs_kept <= 0.5
    assert "bit-equal" in report.verified
    assert evaluate(out, data) == report.after
    tokens = round(report.mean_length)
    assert [(shape.batch, shape.sequence) for shape in report.latency] == [(1, tokens), (32, tokens)]
    name = "preprocessor_config.json"
    assert (out / name).read_bytes() == (model / name).read_bytes()
    assert transformers.AutoFeatureExtractor.from_pretrained(out).sampling_rate == sounds.RATE
    returned = load(out)(input_values=torch.zeros(1, 48, 16) if spectrograms else torch.zeros(1, 800))
    assert returned.logits.shape == (1, 2)


def test_text_models_still_have_a_tokenizer(checkpoint: Path, data: Path) -> None:
    result = prune(checkpoint, Data(task="sst2", folder=data), macs=0.5, calibration=SMALL)
    assert result.tokenizer is result.processor
    with pytest.raises(OptionError, match="made for text-classification"):
        prune(checkpoint, Data(task="image-classification", folder=data), macs=0.5)
