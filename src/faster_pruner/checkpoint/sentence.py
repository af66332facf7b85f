"""Folders of sentence-transformers: what they do with the hidden states of their transformer.

The modules behind the transformer (see `layout`) are opened by sentence-transformers' own code, and never by code that
a folder names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import nn
from transformers import PreTrainedTokenizerBase

from faster_pruner.checkpoint.layout import (
    ANY_LIMITS,
    LIMITS,
    MODULES,
    PACKAGE,
    SETTINGS,
    Layout,
    default_prompt,
    is_own,
    kind_of,
    longest_text,
    prompt_named,
    read_settings,
    writes_messages,
)
from faster_pruner.checkpoint.quiet import quiet_transformers
from faster_pruner.checkpoint.screening import first_lines
from faster_pruner.errors import CheckpointError, OptionError
from faster_pruner.model.head import Head

POOLINGS = ("mean", "cls", "max", "lasttoken")
# Modules that go on from the embeddings of tokens, or from that of the text.
_SUPPORTED = ("Pooling", "Dense", "Normalize", "Dropout", "LayerNorm")
_DOT = ("dot", "dot_product", "dot_score")
# What folders call the prompts of queries and of documents. Every folder that sentence-transformers 6 saves has an
# empty "document".
_OF_QUERIES = "query"
_OF_DOCUMENTS = ("document", "passage", "corpus")


def read_head(layout: Layout, *, dims: Sequence[int] = ()) -> Head:
    """What a folder of sentence-transformers does with hidden states.

    Args:
        layout: of the folder.
        dims: lengths of prefixes that are embeddings, too (Matryoshka).

    Raises:
        CheckpointError: modules that are not sentence-transformers' own, or cannot be opened.
        OptionError: sentence-transformers is not installed, or a prefix is as long as the vector.
    """
    place = str(layout.root)
    if not is_own(layout.modules[0]):
        raise _strange(place, layout.modules[0])
    opened = tuple(_opened(place, each) for each in layout.modules[1:])
    settings = read_settings(layout.root / SETTINGS)
    limits = _limits(layout.transformer)
    if writes_messages(limits):
        raise CheckpointError(
            f"{place!r} puts texts into its tokenizer's chat template ({LIMITS} lists the modality 'message'), which "
            "is not supported; where it works on plain texts, leave that entry out"
        )
    return Head(
        modules=opened,
        similarity="dot" if str(settings.get("similarity_fn_name") or "cosine") in _DOT else "cosine",
        longest=longest_text(limits),
        lower=limits.get("do_lower_case") is True,
        prompt=default_prompt(settings),
        query_prompt=prompt_named(settings, _OF_QUERIES),
        document_prompt=next(filter(None, (prompt_named(settings, name) for name in _OF_DOCUMENTS)), ""),
        dims=tuple(dims),
    )


def fitted(head: Head, tokenizer: object) -> Head:
    """A head that knows what its prompt is in tokens; the tokenizer becomes one that ignores case where it says so."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return head
    if head.lower:
        _ignore_case(tokenizer)
    if not head.prompt or all(getattr(module, "include_prompt", True) for module in head.modules):
        return head
    return replace(head, left_out=prompt_tokens(tokenizer, head.prompt))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Tokens of a text's beginning that are its prompt, as sentence-transformers counts them."""
    ids: list[int] = list(tokenizer(prompt)["input_ids"])  # pyright: ignore[reportArgumentType]
    # what a tokenizer puts behind every text is no part of the prompt
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _ignore_case(tokenizer: Any) -> None:
    """Lower the case of all letters, as sentence-transformers does where a folder asks for it."""
    if tokenizer.is_fast:
        own = tokenizer.backend_tokenizer
        own.normalizer = Normalizers([Lowercase(), *([] if own.normalizer is None else [own.normalizer])])
    else:
        tokenizer.do_lower_case = True


def head_of(model: Any, pooling: str, *, dims: Sequence[int] = ()) -> Head:
    """A head for an encoder that comes without one. Raises OptionError."""
    if pooling not in POOLINGS:
        raise OptionError(f"pooling is {pooling!r}; known are {', '.join(POOLINGS)}", option="pooling")
    own = _known_modules()
    width = int(model.config.get_text_config().hidden_size)
    return Head(modules=(own.Pooling(width, pooling), own.Normalize()), dims=tuple(dims))


def write_head(folder: Path, head: Head) -> None:
    """Make a folder with a transformer one of sentence-transformers, with the modules of a head; if it is none yet.

    Args:
        folder: holds model and tokenizer.
        head: of sentence-transformers' modules.
    """
    if (folder / MODULES).exists():
        return
    listed = [_entry(0, "", _known_modules().Transformer)]
    for place, module in enumerate(head.modules, start=1):
        name = f"{place}_{type(module).__name__}"
        (folder / name).mkdir()
        saved: Any = module
        saved.save(str(folder / name))
        listed.append(_entry(place, name, type(module)))
    (folder / MODULES).write_text(json.dumps(listed, indent=2) + "\n")
    limits = {"max_seq_length": head.longest, "do_lower_case": head.lower}
    (folder / LIMITS).write_text(json.dumps(limits, indent=2) + "\n")


def _entry(place: int, path: str, kind: type) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": path, "type": f"{kind.__module__}.{kind.__qualname__}"}


def _opened(place: str, entry: Mapping[str, Any]) -> nn.Module:
    """One module, by sentence-transformers' own class."""
    path = str(entry["path"])
    if not is_own(entry):
        raise _strange(place, entry)
    if kind_of(entry) not in _SUPPORTED:
        raise CheckpointError(
            f"{place!r}: the module {kind_of(entry)[:80]!r} is not supported; supported are a Transformer and "
            f"{', '.join(_SUPPORTED)}"
        )
    made = getattr(_known_modules(), kind_of(entry))
    if (Path(place) / path / "pytorch_model.bin").exists():
        raise CheckpointError(
            f"{place!r}: the weights of {path} are pytorch_model.bin, which is never unpickled; where you trust it, "
            "open it with sentence-transformers and save it again: that writes safetensors"
        )
    try:
        with quiet_transformers():
            module: nn.Module = made.load(place, subfolder=path, local_files_only=True)
    except Exception as error:  # whatever its code makes of strangers' settings
        raise CheckpointError(f"{place!r}: module {path} cannot be opened: {first_lines(error)}") from error
    return module.eval()


def _strange(place: str, entry: Mapping[str, Any]) -> CheckpointError:
    """A module that is not one of sentence-transformers' own."""
    kind, path = str(entry.get("type", "")), str(entry["path"])
    return CheckpointError(f"{place!r}: {MODULES} names {kind[:80]!r} in {path[:80]!r}; only its own are opened")


def _limits(folder: Path) -> dict[str, Any]:
    """Settings of the transformer as a module, under whichever name. Raises CheckpointError."""
    files = [folder / LIMITS, *sorted(folder.glob(ANY_LIMITS))]
    return read_settings(next((file for file in files if file.is_file()), folder / LIMITS))


def _known_modules() -> Any:
    """sentence-transformers' own modules. Raises OptionError where it is not installed."""
    if find_spec(PACKAGE) is None:
        raise OptionError(
            "embeddings need sentence-transformers, which is not installed; install faster-pruner[embedding]"
        )
    return import_module(f"{PACKAGE}.sentence_transformer.modules")
