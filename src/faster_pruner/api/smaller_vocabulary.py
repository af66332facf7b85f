"""The step from a checkpoint to the same one with fewer tokens: chosen on a corpus, written, opened again, proved."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.api.corpus import Corpus
from faster_pruner.api.outcome import stored_bytes
from faster_pruner.checkpoint.companions import Companions, read_companions
from faster_pruner.checkpoint.opening import Opened, open_checkpoint
from faster_pruner.checkpoint.saving import weight_bytes, write_checkpoint
from faster_pruner.checkpoint.sentence import write_head
from faster_pruner.checkpoint.sizes import is_pruned
from faster_pruner.checkpoint.smaller_tokenizer import smaller, tokenizer_files, whole_tokenizer
from faster_pruner.checkpoint.tokens import TokenTensors, named_ids, select_tokens, token_tensors
from faster_pruner.errors import UnsupportedModelError, VerificationError
from faster_pruner.host.devices import environment
from faster_pruner.host.places import public_name
from faster_pruner.host.temporary import temporary_folder
from faster_pruner.model.detection.watching import twin
from faster_pruner.model.limits import input_names, longest_row
from faster_pruner.model.passes import all_tensors_in, device_of, inference
from faster_pruner.vocabulary.choosing import Choice, affected, choose, same_tokens
from faster_pruner.vocabulary.measured import VocabularyReport

# Texts that the models before and after are compared on, a few at once, and their tokens.
_COMPARED, _AT_ONCE, _TOKENS = 16, 4, 32
# Largest difference of scores over the vocabulary, relative to the largest score: other matrix shapes round otherwise.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Chosen:
    """A checkpoint, and the tokens of it that stay.

    Attributes:
        place: where it was opened.
        opened: model, tokenizer and head; never changed.
        corpus: that was asked.
        tokens: its tensors with an entry per token.
        choice: the tokens that stay.
        companions: its files with the new tokenizer.
        left_out: names of files that are not among them.
        returned: by batch of texts, what the model returns for them.
    """

    place: str
    opened: Opened
    corpus: Corpus
    tokens: TokenTensors
    choice: Choice
    companions: Companions
    left_out: list[str]
    returned: list[tuple[list[str], list[Tensor]]]

    @property
    def bytes_before(self) -> int:
        """Of the weights as they are stored."""
        own = weight_bytes(Path(self.place)) if Path(self.place).is_dir() else 0
        return own or stored_bytes(self.opened.model, self.opened.dtype)


@dataclass(frozen=True)
class Smaller:
    """A checkpoint with fewer tokens.

    Attributes:
        opened: model and tokenizer as they were opened again.
        companions: its files with the new tokenizer.
        choice: the tokens that stayed.
        report: what was measured and proved.
    """

    opened: Opened
    companions: Companions
    choice: Choice
    report: VocabularyReport


def choose_tokens(place: str, opened: Opened, corpus: Corpus) -> Chosen:
    """The tokens that stay, proved on the corpus. Raises UnsupportedModelError, DataError."""
    document = whole_tokenizer(opened.processor)
    tokenizer: Any = opened.processor
    tokens = token_tensors(opened.model)
    files = tokenizer_files(tokenizer, read_companions(place))
    always = named_ids(opened.model, tokens) | files.named() | set(tokenizer.all_special_ids)
    choice = choose(document, [*corpus.voting, *_prompts(opened)], always=always)
    companions, left_out = smaller(files, choice)
    compared = [text for text in corpus.voting if text.strip()][:_COMPARED]
    groups = [compared[i : i + _AT_ONCE] for i in range(0, len(compared), _AT_ONCE)]
    returned = [(group, _returned(opened.model, tokenizer, group)) for group in groups]
    return Chosen(place, opened, corpus, tokens, choice, companions, left_out, returned)


def _prompts(opened: Opened) -> list[str]:
    """What a folder of sentence-transformers puts in front of texts: its tokens stay, too."""
    head, scoring = opened.head, opened.scoring
    found = [] if head is None else [head.prompt, head.query_prompt, head.document_prompt]
    found += [] if scoring is None else [scoring.prompt]
    return [prompt for prompt in found if prompt]


def smaller_in_memory(chosen: Chosen) -> Smaller:
    """The checkpoint with fewer tokens, for whoever goes on with it; the weights that both have are held once.

    Raises:
        OutputError: there is no space for a temporary folder of it.
        VerificationError: it does not behave like the one before.
    """
    with temporary_folder(size=chosen.bytes_before) as folder:
        found = write_smaller(folder, chosen)
    _share(chosen.opened.model, found.opened.model)
    return found


def write_smaller(folder: Path, chosen: Chosen) -> Smaller:
    """Write the checkpoint with fewer tokens, open it again and compare both.

    Args:
        folder: an empty one.
        chosen: the checkpoint and the tokens that stay.

    Raises:
        OutputError: the disk fills up.
        VerificationError: tokens or what the model returns are not the same.
    """
    before = chosen.opened
    model: Any = twin(before.model)
    select_tokens(model, chosen.tokens, chosen.choice.kept)
    sublayers = before.known if is_pruned(model.config) else []
    write_checkpoint(folder, model, sublayers, None, dtype=before.dtype, companions=chosen.companions)
    if before.head is not None:
        write_head(folder, before.head)
    dims = () if before.head is None else before.head.dims
    after = open_checkpoint(folder, device=device_of(before.model), dims=dims)
    if not same_tokens(chosen.choice, whole_tokenizer(after.processor), chosen.corpus.voting):
        raise VerificationError(
            "the saved tokenizer, as transformers opens it, gives other tokens than the one before; nothing was "
            "written. Please report this"
        )
    verified = _compare(chosen, after.model, after.processor)
    report = replace(_report(chosen), verified=verified, bytes=weight_bytes(folder))
    return Smaller(after, chosen.companions, chosen.choice, report)


def _report(chosen: Chosen) -> VocabularyReport:
    """What is known before anything is changed."""
    choice, corpus = chosen.choice, chosen.corpus
    return VocabularyReport(
        model=public_name(chosen.place),
        algorithm=choice.before.algorithm,
        tokens_before=len(choice.before.tokens),
        tokens=len(choice.after.tokens),
        used=choice.used,
        put_back=choice.put_back,
        rows_before=chosen.tokens.rows,
        rows=len(choice.kept),
        texts=len(corpus.voting),
        held_out=affected(choice, corpus.held_out) if corpus.held_out else None,
        bytes_before=chosen.bytes_before,
        bytes=0,
        tensors=chosen.tokens.shapes_with(len(choice.kept)),
        left_out=chosen.left_out,
        environment=environment(device_of(chosen.opened.model)),
    )


def _returned(model: Any, tokenizer: Any, texts: list[str]) -> list[Tensor]:
    """Everything that a model returns for texts, which are cut short.

    Raises:
        UnsupportedModelError: it cannot be run on texts alone.
    """
    limit = min(_TOKENS, longest_row(model))
    padded = tokenizer.pad_token_id is not None
    with_padding = {"padding": True, "padding_side": "right"} if padded else {}
    found: list[Tensor] = []
    # without padding one text is one batch
    for group in [texts] if padded else [[text] for text in texts]:
        encoded = tokenizer(group, truncation=True, max_length=limit, return_tensors="pt", **with_padding)
        inputs = {key: encoded[key].to(model.device) for key in input_names(model) if key in encoded}
        if model.config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
            inputs["decoder_input_ids"] = inputs["input_ids"]
        try:
            with inference(model):
                found += all_tensors_in(model(**inputs))
        except Exception as error:  # whatever it misses
            raise UnsupportedModelError(
                f"a {type(model).__name__} cannot be run on texts alone ({error}); only vocabularies of models of text "
                "are pruned"
            ) from error
    return found


def _compare(before: Chosen, reopened: Any, tokenizer: Any) -> str:
    """What was compared, in words. Raises VerificationError where the model returns something else than before."""
    kept = torch.tensor(before.choice.kept, device=device_of(reopened))
    largest = 0.0
    for group, earlier in before.returned:
        for one, other in zip(earlier, _returned(reopened, tokenizer, group), strict=True):
            if one.shape == other.shape:
                same = torch.equal(one, other)
            else:
                # a score per token, and those of the tokens that stay
                scores = one.index_select(-1, kept) if one.shape[-1] == before.tokens.rows else one
                same = scores.shape == other.shape
                if same:
                    gap = float((scores - other).abs().max() / scores.abs().max().clamp(min=1e-30))
                    largest, same = max(largest, gap), gap <= _ROUNDING
            if not same:
                raise VerificationError(
                    "the saved checkpoint does not return what the model before does on the corpus; nothing was "
                    "written. Please report this"
                )
    rows = sum(len(group) for group, _ in before.returned)
    close = "" if largest == 0 else f" (scores over the vocabulary within {largest:.0e})"
    texts = len(before.corpus.voting)
    return f"the tokens of {texts} texts are the same; what the model returns is bit-equal on {rows} of them{close}"


def _share(dense: nn.Module, smaller: nn.Module) -> None:
    """Hold the weights that both models have once; neither is ever changed."""
    own = dict([*dense.named_parameters(), *dense.named_buffers()])
    for name, tensor in [*smaller.named_parameters(), *smaller.named_buffers()]:
        other = own.get(name)
        if other is not None and other.dtype == tensor.dtype and torch.equal(other, tensor):
            tensor.data = other.data
