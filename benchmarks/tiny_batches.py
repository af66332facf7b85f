"""A batch for any tiny model: the first of several guesses that its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Lengths of sounds, of frames of spectrograms that are tried.
_SAMPLES = (400, 4000)
_FRAMES = (16, 64, 200, 3000)
_USUAL = (80, 128, 160)
_BINS = (
    "num_mel_bins",
    "feature_size",
    "num_mel_features",
    "feature_projection_input_dim",
    "input_feat_size",
    "n_mels",
    "input_dim",
    "input_size",
)


class Guess:
    """Makes inputs of the right kinds for one model; every tensor has `rows` rows."""

    def __init__(self, model: nn.Module, rows: int, length: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.model, self.rows, self.length = model, rows, length
        self.config: Any = model.config
        self.parameters = inspect.signature(model.forward).parameters
        self.main = str(getattr(model, "main_input_name", "input_ids"))
        self.ids, self.mask = self._tokens()

    def all(self) -> Iterator[dict[str, Tensor]]:
        """The guesses, the likeliest first."""
        kinds = [self._text, self._images, self._text_and_images, self._videos, self._series, self._patches]
        first = {"pixel_values": self._images, "pixel_values_videos": self._videos, "past_values": self._series}
        kinds.sort(key=lambda kind: kind != first.get(self.main, self._text))
        for kind in [self._packed, *kinds, self._sounds, self._states]:
            for found in kind():
                yield self._completed(found)

    def randn(self, *shape: int) -> Tensor:
        """Random numbers."""
        return torch.randn(*shape, generator=self.generator)

    def _tokens(self) -> tuple[Tensor, Tensor]:
        """Ids and mask of rows of different lengths."""
        rows, length = self.rows, self.length
        ids = torch.randint(10, 90, (rows, length), generator=self.generator)
        mask = (torch.arange(length)[None, :] < (length - 2 * torch.arange(rows))[:, None].clamp(min=2)).long()
        ids[torch.arange(rows), mask.sum(dim=1) - 1] = 2
        ids[mask == 0] = 0
        return ids, mask

    def _text(self) -> Iterator[dict[str, Tensor]]:
        if "input_ids" in self.parameters:
            masked = {"attention_mask": self.mask} if "attention_mask" in self.parameters else {}
            yield {"input_ids": self.ids, **masked}
            if "visual_feats" in self.parameters:
                seen = self.randn(self.rows, 4, self.config.visual_feat_dim)
                yield {"input_ids": self.ids, **masked, "visual_feats": seen, "visual_pos": self.randn(self.rows, 4, 4)}

    def _images(self) -> Iterator[dict[str, Tensor]]:
        if "pixel_values" not in self.parameters:
            return
        own = self._vision()
        size = getattr(own, "image_size", 64)
        for side in (size, 64, 128):
            height, width = side if isinstance(side, list | tuple) else (side, side)
            yield {"pixel_values": self.randn(self.rows, self._channels(own), int(height), int(width))}

    def _text_and_images(self) -> Iterator[dict[str, Tensor]]:
        for text in self._text():
            for images in self._images():
                yield text | images

    def _videos(self) -> Iterator[dict[str, Tensor]]:
        name = next((n for n in ("pixel_values_videos", "pixel_values") if n in self.parameters), None)
        if name is None:
            return
        own = self._vision()
        size = getattr(own, "image_size", None) or getattr(own, "crop_size", 32)
        size = size if isinstance(size, int) else 32
        frames = next((f for n in ("num_frames", "frames_per_clip") if isinstance(f := getattr(own, n, None), int)), 2)
        video = {name: self.randn(self.rows, frames, self._channels(own), size, size)}
        yield video
        for text in self._text():
            yield text | video

    def _series(self) -> Iterator[dict[str, Tensor]]:
        if "past_values" not in self.parameters:
            return
        length, channels = getattr(self.config, "context_length", 32), getattr(self.config, "num_input_channels", 1)
        if "past_time_features" in self.parameters:
            past, ahead = length + max(self.config.lags_sequence), self.config.prediction_length
            yield {
                "past_values": self.randn(self.rows, past),
                "past_time_features": self.randn(self.rows, past, 1),
                "past_observed_mask": torch.ones(self.rows, past),
                "future_values": self.randn(self.rows, ahead),
                "future_time_features": self.randn(self.rows, ahead, 1),
            }
        yield {"past_values": self.randn(self.rows, length, channels)}
        yield {"past_values": self.randn(self.rows, length)}

    def _packed(self) -> Iterator[dict[str, Tensor]]:
        """Patches of all images one after the other, with the grid of each."""
        grid = next((n for n in self.parameters if n.endswith("grid_thw")), None)
        name = next((n for n in ("hidden_states", "pixel_values") if n in self.parameters), None)
        if grid is None or name is None:
            return
        own = self.config
        size, count = getattr(own, "patch_size", 8), self.rows * 16
        pixels = self._channels(own) * size**2
        more = {"merge_sizes": torch.ones(self.rows, dtype=torch.long)} if "merge_sizes" in self.parameters else {}
        for frames in (getattr(own, "temporal_patch_size", 1), 2):
            yield {name: self.randn(count, pixels * frames), grid: torch.tensor([[1, 4, 4]] * self.rows), **more}
        yield {name: self.randn(count, self._channels(own), size, size), grid: torch.tensor([[1, 4, 4]] * self.rows)}

    def _patches(self) -> Iterator[dict[str, Tensor]]:
        """Patches of every image by itself, with the shape of its grid."""
        if "spatial_shapes" in self.parameters:
            own = self._vision()
            pixels = self.randn(self.rows, 16, self._channels(own) * own.patch_size**2)
            mask = torch.ones(self.rows, 16, dtype=torch.long)
            shapes = torch.tensor([[4, 4]] * self.rows)
            images = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
            yield images
            for text in self._text():
                yield text | images

    def _states(self) -> Iterator[dict[str, Tensor]]:
        """What another model puts out, in either order of axes."""
        name = next((n for n in ("hidden_states", "inputs_embeds", "query_embeds") if n in self.parameters), None)
        if name is not None:
            yield {name: self.randn(self.rows, self.length, getattr(self.config, "hidden_size", 32))}
            yield {name: self.randn(self.rows, getattr(self.config, "hidden_size", 32), self.length)}

    def _sounds(self) -> Iterator[dict[str, Tensor]]:
        """Sounds and spectrograms, in either order of axes."""
        inputs = [n for n in self.parameters if n.startswith(("input_values", "input_features", "audio"))]
        name = self.main if self.main in inputs else next(iter(inputs), None)
        if name is None or name == "input_ids":
            return
        own = getattr(self.config, "audio_config", None) or getattr(self.config, "encoder_config", None) or self.config
        bins = [b for n in _BINS if isinstance(b := getattr(own, n, None), int)] or [80]
        stated = (getattr(own, "max_length", 0), 2 * (getattr(own, "max_source_positions", 0) or 0))
        if "features" in name or "spectrogram" in self.config.model_type or self.config.model_type == "speecht5":
            for frames in (*(f for f in stated if 0 < f <= max(_FRAMES)), *_FRAMES):
                for count in dict.fromkeys((*bins, *_USUAL)):
                    yield from self._spectrograms(name, frames, count)
        for samples in _SAMPLES:
            yield {name: self.randn(self.rows, samples)}
            yield {name: self.randn(self.rows, 1, samples)}

    def _spectrograms(self, name: str, frames: int, bins: int) -> Iterator[dict[str, Tensor]]:
        """Spectrograms of one size, in either order of axes, alone and with what may come with them."""
        for shape in ((bins, frames), (frames, bins), (1, frames, bins)):
            sound = {name: self.randn(self.rows, *shape)}
            yield sound
            if f"{name}_mask" in self.parameters:
                yield sound | {f"{name}_mask": torch.ones(self.rows, frames, dtype=torch.long)}
        for text in self._text():
            yield text | sound

    def _completed(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """With what else the forward takes."""
        decodes = getattr(self.config, "is_encoder_decoder", False) and "decoder_input_ids" in self.parameters
        if decodes:
            found["decoder_input_ids"] = self.ids.clone()
            if "decoder_attention_mask" in self.parameters:
                found["decoder_attention_mask"] = self.mask.clone()
        if "bbox" in self.parameters and "input_ids" in found:
            corner = torch.randint(0, 30, (self.rows, self.length, 2), generator=self.generator)
            found["bbox"] = corner.repeat(1, 1, 2)
            found["bbox"][..., 2:] += 5
        for name, parameter in self.parameters.items():
            named = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
            if named and name not in found and name != "self":
                tensor = self._other(name, next(iter(found.values())))
                if tensor is not None:
                    found[name] = tensor
        return found

    def _other(self, name: str, main: Tensor) -> Tensor | None:
        """An input without a default, by its name."""
        width = getattr(self.config, "hidden_size", 32)
        if name.endswith("input_ids") or name == "task_inputs":
            return self.ids
        if name.startswith("prompt_"):
            return main.clone()
        if name.endswith("embeds") or name in ("hidden_states", "context_hidden_states"):
            return self.randn(self.rows, self.length, width)
        if name.endswith("mask"):
            steps = main.shape[2] if main.ndim == 3 and main.shape[1] in (80, 128, 160) else main.shape[1]
            return torch.ones(self.rows, steps, dtype=torch.long)
        if name == "past_values_padding":
            return torch.zeros_like(main)
        return torch.zeros(self.rows, 1, dtype=torch.long) if name == "freq" else None

    def _vision(self) -> Any:
        """The part of the config that says what images are like."""
        return (
            getattr(self.config, "vision_config", None) or getattr(self.config, "backbone_config", None) or self.config
        )

    def _channels(self, own: Any) -> int:
        """Of an image."""
        found = getattr(own, "num_channels", None) or getattr(own, "in_channels", 3)
        return found if isinstance(found, int) else 3


@torch.no_grad()
def batch_for(model: nn.Module, *, rows: int = 2, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Inputs that a model's forward takes. Raises what the likeliest guess raises when it takes none."""
    first: Exception | None = None
    for inputs in Guess(model, rows, length, seed).all():
        try:
            model(**inputs)
        except Exception as error:
            first = first or error
        else:
            return inputs
    raise first or ValueError(f"nothing is known that {type(model).__name__} takes")
