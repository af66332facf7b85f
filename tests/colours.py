"""Small images that the tests make themselves, and a tiny ViT that tells their colours."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from faster_pruner.checkpoint.quiet import quiet_transformers

# In another order than their names', which is that of folders.
COLOURS = {"red": (220, 30, 30), "Green": (30, 200, 40), "blue": (20, 40, 230)}
CONFIG = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 8,
    "id2label": dict(enumerate(COLOURS)),
    "label2id": {name: i for i, name in enumerate(COLOURS)},
}


def make_image(colour: str, seed: int, *, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """A noisy image of one colour."""
    noise = np.random.default_rng(seed).normal(0, 60, (*size, 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def make_processor(**changes: Any) -> Any:
    """What brings images into the shape that the tiny ViT takes."""
    with quiet_transformers():
        return ViTImageProcessor(size={"height": 16, "width": 16}, **changes)


def make_vit(**changes: Any) -> ViTForImageClassification:
    """A tiny ViT with random weights."""
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**{**CONFIG, **changes})).eval()


@functools.cache
def trained() -> ViTForImageClassification:
    """A tiny ViT that knows its colours, to be copied before it is changed."""
    model, processor, names = make_vit(), make_processor(), list(COLOURS)
    pixels = processor(images=[make_image(names[i % 3], 1000 + i) for i in range(96)], return_tensors="pt")
    labels = torch.arange(96) % 3
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(25):
        optimiser.zero_grad()
        model(**pixels, labels=labels).loss.backward()
        optimiser.step()
    return model.eval()


def save_checkpoint(folder: Path) -> Path:
    """The trained ViT with its image processor."""
    trained().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def save_images(folder: Path, *, train: int = 30, validation: int = 24) -> Path:
    """<folder>/{train,validation}/<class>/<number>.{png,jpg}."""
    for split, count in (("train", train), ("validation", validation)):
        for i, colour in zip(range(count), list(COLOURS) * count, strict=False):
            place = folder / split / colour
            place.mkdir(parents=True, exist_ok=True)
            suffix = "png" if i % 2 else "JPG"
            make_image(colour, i + 500 * (split == "train")).save(place / f"{i:03}.{suffix}", quality=95)
    return folder
