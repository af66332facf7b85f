"""Rows of sounds to samples or spectrograms, and what is no sound."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sounds
from badness import bad_input
from faster_pruner.data.files import Rows
from faster_pruner.data.sources import Source, load_split
from faster_pruner.data.tasks import Task
from faster_pruner.errors import DataError, OptionError
from faster_pruner.objectives.audio import encode
from faster_pruner.objectives.registry import KINDS, kind_of, objective_of

TASK = Task(name="", text_column="audio")


def cell(samples: Any, rate: int = sounds.RATE) -> dict[str, Any]:
    return {"audio": {"array": samples, "sampling_rate": rate}, "label": "high"}


def test_samples_are_those_of_the_feature_extractor(tmp_path: Path) -> None:
    rows = load_split(Source(folder=sounds.save_rows(tmp_path)), ("train",))
    model, extractor = sounds.make_waves(), sounds.extractor_of_waves()
    found = encode(rows, TASK, extractor, config=model.config, limit=9)
    given = [np.asarray(row["audio"]["array"], dtype=np.float32) for row in rows]
    wanted = extractor(given, sampling_rate=sounds.RATE, return_tensors="pt")["input_values"]
    assert torch.equal(found.arrays["input_values"], wanted)
    assert found.labels == [0, 1] * 8
    tokens = model.wav2vec2(wanted[:1]).last_hidden_state.shape[1]
    assert abs(found.lengths[0] - tokens) <= 2


def test_spectrograms_count_their_patches() -> None:
    model, rows = sounds.make_spectrograms(), [cell(sounds.make_sound("low", i, 500 + 90 * i)) for i in range(3)]
    found = encode(rows, TASK, sounds.extractor_of_spectrograms(), config=model.config, limit=9)
    assert found.arrays["input_values"].shape == (3, 48, 16)
    last = model.audio_spectrogram_transformer(found.arrays["input_values"]).last_hidden_state
    assert found.lengths == [last.shape[1]] * 3


def test_shorter_sounds_end_in_silence_where_the_model_is_used_to_it() -> None:
    rows = [cell(sounds.make_sound("low", i, 600 + 100 * i)) for i in range(3)]
    config, extractor = sounds.make_waves().config, sounds.extractor_of_waves(return_attention_mask=False)
    found = encode(rows, TASK, extractor, config=config, limit=9)
    for row, values in zip(rows, found.arrays["input_values"], strict=True):
        # as one sound alone is heard, and nothing after it
        wanted = extractor(row["audio"]["array"], sampling_rate=sounds.RATE, return_tensors="pt")["input_values"][0]
        assert torch.equal(values[: len(wanted)], wanted)
        assert values.shape == (800,)
        assert not values[len(wanted) :].any()
    bad_input("sounds of different lengths for a model that is not used to silence")
    with pytest.raises(DataError, match="are of different lengths, 600 to 800, and this model was not trained on"):
        encode(rows, TASK, sounds.extractor_of_waves(return_attention_mask=True), config=config, limit=9)


def test_several_channels_are_one() -> None:
    tone = sounds.make_sound("low", 0)
    config, extractor = sounds.make_waves().config, sounds.extractor_of_waves()
    rows = [cell(tone), cell(np.stack([tone, tone])), cell(np.stack([tone, tone], axis=1))]
    values = encode(rows, TASK, extractor, config=config, limit=9).arrays["input_values"]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            cell([0.0] * 800, 16_000),
            r"row 1 .*: the sound has 16000 samples a second, and the model hears 8000; ",
        ),
        (cell([]), r"row 1 .*: the sound in column 'audio' is empty"),
        (cell([0.0, float("nan")]), "is empty, or has values that are no numbers"),
        (cell("noise"), r"row 1 .*: the sound in column 'audio' is no list of numbers"),
        (cell([[0.0], [0.0, 1.0]]), "is no list of numbers"),
        ({"audio": None, "label": 0}, "has nothing to open in column 'audio'"),
        ({"audio": {"bytes": b"RIFF", "path": None}, "label": 0}, "4 bytes cannot be opened as a sound"),
    ],
)
def test_what_is_no_sound(row: dict[str, Any], message: str) -> None:
    bad_input(f"sound {message}")
    pytest.importorskip("soundfile")
    with pytest.raises(DataError, match=message) as caught:
        encode([row], TASK, sounds.extractor_of_waves(), config=sounds.make_waves().config, limit=9)
    assert "\n" not in str(caught.value)


def test_files_of_sounds(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    tone = sounds.make_sound("low", 0)
    (tmp_path / "low").mkdir()
    soundfile.write(tmp_path / "low" / "a.wav", tone, sounds.RATE, subtype="FLOAT")
    stream = io.BytesIO()
    soundfile.write(stream, tone, sounds.RATE, format="WAV", subtype="FLOAT")
    rows = Rows(
        [{"audio": {"bytes": stream.getvalue()}}, {"audio": "low/a.wav"}, {"audio": {"array": tone}}], folder=tmp_path
    )
    config, extractor = sounds.make_waves().config, sounds.extractor_of_waves()
    values = encode(rows, TASK, extractor, config=config, limit=9, labelled=False).arrays["input_values"]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_without_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    rows, config = [{"audio": b"RIFF", "label": 0}], sounds.make_waves().config
    with pytest.raises(OptionError, match="files of sound need soundfile, which is not installed; install faster-pr"):
        encode(rows, TASK, sounds.extractor_of_waves(), config=config, limit=9)


def test_what_a_classifier_of_sounds_is_judged_by() -> None:
    for model in (sounds.make_waves(), sounds.make_spectrograms()):
        assert kind_of(model) is KINDS["audio-classification"]
        assert objective_of(model).reported == ("accuracy", "loss", "calibration_error")
