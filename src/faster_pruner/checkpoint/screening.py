"""What a checkpoint is refused for before any of it is built: a place, its config as JSON, and the names in its files.

Only the small JSON files and the headers of the safetensors files are read. A config that asks for ten million layers
is answered from the names of the tensors that are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from faster_pruner.checks import shown
from faster_pruner.errors import CheckpointError

CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
# What tools write beside a config that does not say itself that the weights are quantised.
_QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_DEQUANTISE = "dequantise it first, or give the checkpoint that it was made from, and quantise the pruned model again"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Suffixes of weights that would have to be unpickled or that another framework wrote.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
# No config of a model is longer; a longer one is something else.
_LARGEST_JSON = 10 << 20
# The hub gets one attempt of so many seconds.
_HUB_SECONDS = 5.0
# Numbers that a tensor has along one of its sides, and what is in the names of such tensors: rotary positions have
# none, and a model of sound has no words. Those that a pruned checkpoint may state and not have come apart.
_SIDES = {"hidden_size": "", "vocab_size": "embed", "max_position_embeddings": "position"}
# A model may do without these.
_OPTIONAL_SIDES = ("type_vocab_size",)
_PRUNED_SIDES = ("intermediate_size",)
# Dtypes that weights may be stored in; no task has more labels.
DTYPES = ("float32", "float16", "bfloat16", "float64")
_MOST_LABELS = 1_000_000
_FLOAT, _FLOATS = "__float__", ("Infinity", "-Infinity", "NaN")
_COUNTS = ("num_hidden_layers", "num_attention_heads", *_SIDES, *_OPTIONAL_SIDES, *_PRUNED_SIDES)


def as_place(value: object) -> str:
    """Where a checkpoint is, as text. Raises CheckpointError for what is no path and no name."""
    if isinstance(value, str | os.PathLike):
        place = os.fspath(value)
        if isinstance(place, str) and place.strip() and "\0" not in place:
            return place
    kind = f"a {type(value).__name__}" if not isinstance(value, str | bytes | os.PathLike) else shown(value)
    raise CheckpointError(
        f"{kind} arrived where a checkpoint belongs; give a folder or a hub id (a model in memory goes to prune_model)"
    )


def check_place(place: str) -> None:
    """Raise CheckpointError when `place` is neither a folder with a config nor a model on the hub."""
    try:
        _check_place(place, Path(place))
    except OSError as error:
        raise CheckpointError(f"model folder {shown(place)} cannot be read: {error.strerror}") from error


def _check_place(place: str, path: Path) -> None:
    if path.is_dir():
        if (path / _ADAPTER).exists():
            raise CheckpointError(
                f"{place!r} holds an adapter ({_ADAPTER}), which is no whole model; merge it into its base model first "
                "(merge_and_unload of peft) and save that"
            )
        for name in _QUANTISED:
            if (path / name).is_file():
                raise CheckpointError(f"{place!r} is quantised ({name}); {_DEQUANTISE}")
        if not (path / CONFIG).is_file():
            raise CheckpointError(f"{place!r} has no {CONFIG}; give a folder saved by save_pretrained, or a hub id")
    elif path.exists() or place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise CheckpointError(f"model folder {shown(place)} does not exist or is not a folder")
    else:
        _ask_the_hub(place)


def _ask_the_hub(place: str) -> None:
    """Raise CheckpointError when there is no such model on the hub, after one short attempt."""
    missing = f"there is no folder {shown(place)} here, and"
    try:
        if isinstance(try_to_load_from_cache(place, CONFIG), str):
            return
        url = hf_hub_url(place, CONFIG)
    except HFValidationError as error:
        raise CheckpointError(f"{missing} it is no name that the hub could have") from error
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{missing} the hub is not asked (HF_HUB_OFFLINE is set)")
    try:
        status = int(get_session().head(url, timeout=_HUB_SECONDS).status_code)
    except Exception as error:  # whatever a network can do, in the words of whichever client is installed
        raise CheckpointError(f"{missing} the hub cannot be reached ({type(error).__name__})") from error
    if status == 404:
        raise CheckpointError(f"{missing} the hub has no such model")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError, which names the file."""
    place, name = str(file.parent), file.name
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{place!r}: {name} has more than {_LARGEST_JSON >> 20} MB; that is no {name}")
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{place!r} has no readable {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{place!r} has no readable {name}: it is not UTF-8 text") from error
    except RecursionError as error:
        raise CheckpointError(f"{place!r} has no readable {name}: it is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{place!r} has no readable {name}: it is not JSON ({first_lines(error)})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{place!r} has no readable {name}: it holds a {type(found).__name__}, not an object")
    return found


def check_config(place: str, raw: Mapping[str, Any]) -> None:
    """Raise CheckpointError for what no opened model could make good."""
    if raw.get("pruned_heads"):
        raise CheckpointError(
            f"{place!r} lists pruned_heads, which transformers 5 cannot load; start from the unpruned checkpoint"
        )
    for key in ("quantization_config", "compression_config", "quantization"):
        if raw.get(key) is not None:
            method = raw[key].get("quant_method") if isinstance(raw[key], dict) else None
            raise CheckpointError(
                f"{place!r} is quantised ({key}{f': {shown(method)}' if method else ''}); {_DEQUANTISE}"
            )
    if not isinstance(raw.get("model_type"), str) or not raw["model_type"]:
        raise CheckpointError(
            f"{place!r}: model_type {shown(raw.get('model_type'))} in {CONFIG} is not supported; it must be a "
            "name such as 'bert'"
        )
    labels, names = raw.get("num_labels", 1), raw.get("id2label")
    wanted = {
        "num_labels": (type(labels) is int and 1 <= labels <= _MOST_LABELS, f"a number from 1 to {_MOST_LABELS}"),
        "id2label": (names is None or (isinstance(names, dict) and len(names) > 0), "an object with a name per class"),
        "chunk_size_feed_forward": (type(raw.get("chunk_size_feed_forward", 0)) is int, "a whole number"),
        **{key: (_is_dtype(raw.get(key)), f"one of {', '.join(DTYPES)}") for key in ("dtype", "torch_dtype")},
    }
    for key, (fine, what) in wanted.items():
        if not fine:
            raise CheckpointError(
                f"{place!r}: {CONFIG} is not usable: {key} is {shown(raw.get(key))}; it must be {what}"
            )


def _is_dtype(value: object) -> bool:
    """Whether a config may say this of its weights; None says nothing."""
    return value is None or (isinstance(value, str) and value.removeprefix("torch.") in DTYPES)


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of tensor, from the headers of a folder's safetensors files. Raises CheckpointError."""
    unreadable = f"{str(folder)!r} has no readable safetensors weights"
    shapes: dict[str, tuple[int, ...]] = {}
    for name in _files(folder, unreadable):
        try:
            with safe_open(folder / name, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise CheckpointError(f"{unreadable}: {name} is missing") from error
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{unreadable}: {name} is damaged or cut short ({first_lines(error)})") from error
    return shapes


def _files(folder: Path, unreadable: str) -> list[str]:
    """Names of the weights files of a folder."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        others = sorted(file.name for file in folder.iterdir() if file.suffix in _OTHER_WEIGHTS)
        if not others:
            raise CheckpointError(f"{unreadable}: there is no {WEIGHTS}")
        raise CheckpointError(
            f"{unreadable}, only {shown(others[0])}, which is never unpickled; where you trust it, open it with "
            "transformers and save_pretrained it again: that writes safetensors"
        )
    files = read_json(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{unreadable}: {INDEX} has no weight_map")
    for name in files.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise CheckpointError(f"{unreadable}: {INDEX} names {shown(name)}, which is no file of the folder")
    return sorted(set(files.values()))


def check_counts(
    place: str, config: PreTrainedConfig, shapes: Mapping[str, Sequence[int]] | None, *, pruned: bool
) -> None:
    """Raise CheckpointError when a config states numbers that cannot be, or that its tensors cannot have.

    Args:
        place: of the checkpoint.
        config: without sizes of single layers.
        shapes: of its tensors; None when they are not known yet.
        pruned: whether single layers may have less than the config states.
    """
    stated = {name: getattr(config, name) for name in _COUNTS if hasattr(config, name)}
    # some classes compute what their config leaves open
    stated = {n: v for n, v in stated.items() if v is not None or getattr(type(config), _own(config, n), 0) is not None}
    for name, value in stated.items():
        least = 0 if name in _OPTIONAL_SIDES else 1
        numbers = _numbers(value)
        if not all(type(number) is int and number >= least for number in numbers):
            raise CheckpointError(
                f"{place!r}: {CONFIG} is not usable: {_own(config, name)} is {shown(value)}; it must be a whole number "
                f"of at least {least}"
            )
    if shapes is None:
        return
    stated = {name: max(_numbers(value)) for name, value in stated.items()}
    layers = stated.get("num_hidden_layers", 0)
    if layers > len(shapes):
        raise CheckpointError(
            f"{place!r}: the tensors do not fit {CONFIG}: {_own(config, 'num_hidden_layers')} is {layers}, but the "
            f"file has {len(shapes)} tensors in all"
        )
    longest = max((side for shape in shapes.values() for side in shape), default=0)
    for name in (*_SIDES, *_OPTIONAL_SIDES, *(() if pruned else _PRUNED_SIDES)):
        has = any(len(shape) == 2 and _SIDES.get(name, "") in key for key, shape in shapes.items())
        if has and stated.get(name, 0) > longest:
            raise CheckpointError(
                f"{place!r}: the tensors do not fit {CONFIG}: {_own(config, name)} is {stated[name]}, but no tensor "
                f"of the file has a side longer than {longest}"
            )


def with_floats(value: Any) -> Any:
    """What transformers writes for infinite numbers, which JSON does not have (``{"__float__": "Infinity"}``), as they
    are; everything else as it is.
    """
    if isinstance(value, list):
        return [with_floats(each) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    record = cast("dict[str, Any]", value)
    if set(record) == {_FLOAT} and record[_FLOAT] in _FLOATS:
        return float(record[_FLOAT])
    return {key: with_floats(each) for key, each in record.items()}


def _numbers(value: Any) -> list[Any]:
    """What a config states of one thing: models of several stages or parts have a number for each."""
    several = list(value.values()) if isinstance(value, dict) else value
    return list(several) if isinstance(several, list | tuple) and several else [value]


def _own(config: PreTrainedConfig, name: str) -> str:
    """What a model type's own config calls a number."""
    return config.attribute_map.get(name, name)


def first_lines(error: BaseException) -> str:
    """An error's text on one line, cut short."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"it names {text}, which does not exist"
    return text if len(text) <= 240 else f"{text[:237]}..."
