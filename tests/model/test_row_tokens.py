"""How many tokens a model makes of what is no text, against what it really makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import colours
import sounds
import tiny
from faster_pruner.model.limits import image_channels, image_tokens, made_up_inputs, shapes_for, sound_tokens

WANTED = [(1, 32), (4, 64), (4, 128)]


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [({}, 5), ({"image_size": 224, "patch_size": 16}, 197), ({"image_size": (16, 32)}, 9), ({"patch_size": 4}, 17)],
)
def test_tokens_of_an_image(changes: dict[str, Any], tokens: int) -> None:
    model = colours.make_vit(**changes)
    assert image_tokens(model.config) == tokens
    with torch.no_grad():
        assert model.vit(**made_up_inputs(model, 1, 0)).last_hidden_state.shape[1] == tokens


def test_a_config_that_states_no_patches() -> None:
    config = colours.make_vit().config
    for value in (0, None, 17, "8"):
        config.__dict__["patch_size"] = value
        assert image_tokens(config) == 197
    assert image_channels(config) == 3


def test_shapes_of_every_kind_of_input() -> None:
    assert shapes_for(tiny.make_model(), WANTED) == [(1, 32), (4, 64)]
    assert shapes_for(colours.make_vit(), WANTED) == [(1, 5), (4, 5)]
    spectrograms = "audio_spectrogram_transformer"
    for model, tower in ((sounds.make_waves(), "wav2vec2"), (sounds.make_spectrograms(), spectrograms)):
        (_, found), *_ = shapes_for(model, WANTED)
        with torch.no_grad():
            made = getattr(model, tower)(**made_up_inputs(model, 1, 0)).last_hidden_state.shape[1]
        assert abs(found - made) <= 2
    assert sound_tokens(object(), (3, 4)) == 197
