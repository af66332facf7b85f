"""Small sounds that the tests make themselves, and tiny models that hear them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

RATE = 8000
# Name -> frequency, Hz.
PITCHES = {"low": 300, "high": 1500}
_NAMES: dict[str, Any] = {
    "id2label": dict(enumerate(PITCHES)),
    "label2id": {name: i for i, name in enumerate(PITCHES)},
}
_SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    **_NAMES,
}


def make_sound(pitch: str, seed: int, samples: int = 800) -> np.ndarray:
    """[T] float32: a noisy tone."""
    time = np.arange(samples) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.1, samples)
    return (0.5 * np.sin(2 * np.pi * PITCHES[pitch] * time) + noise).astype(np.float32)


def make_waves() -> Any:
    """A tiny model of samples."""
    torch.manual_seed(0)
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**_SIZES, **convolutions, **positions)).eval()


def make_spectrograms() -> Any:
    """A tiny model of spectrograms."""
    torch.manual_seed(0)
    shape = {"max_length": 48, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    return ASTForAudioClassification(ASTConfig(**_SIZES, **shape)).eval()


def extractor_of_waves(**changes: Any) -> Any:
    """What brings sounds into the shape that the model of samples takes."""
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, **changes)


def extractor_of_spectrograms() -> Any:
    """What brings sounds into the shape that the model of spectrograms takes."""
    return ASTFeatureExtractor(sampling_rate=RATE, max_length=48, num_mel_bins=16)


def save_checkpoint(folder: Path, *, spectrograms: bool = False) -> Path:
    """A tiny model of sounds with its feature extractor."""
    (make_spectrograms() if spectrograms else make_waves()).save_pretrained(folder)
    (extractor_of_spectrograms() if spectrograms else extractor_of_waves()).save_pretrained(folder)
    return folder


def save_rows(folder: Path, count: int = 16) -> Path:
    """<folder>/{train,validation}.parquet: arrays in rows, as the hub's audio data sets give them when decoded."""
    import datasets

    folder.mkdir(exist_ok=True)
    for place, split in enumerate(("train", "validation")):
        rows = [
            {"audio": {"array": make_sound(pitch, 100 * place + i), "sampling_rate": RATE}, "label": pitch}
            for i, pitch in zip(range(count), list(PITCHES) * count, strict=False)
        ]
        datasets.Dataset.from_list(rows).to_parquet(str(folder / f"{split}.parquet"))
    return folder
