"""Prune a vocabulary: embeddings and tokenizer keep the tokens that a corpus uses, and what every text needs."""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from faster_pruner.api.corpus import as_corpus, places_of, texts_of
from faster_pruner.api.outcome import MASKS_FILE, stored_bytes
from faster_pruner.api.run import Run
from faster_pruner.checkpoint.companions import Companions, read_companions
from faster_pruner.checkpoint.opening import Opened, load, open_checkpoint
from faster_pruner.checkpoint.processors import open_processor
from faster_pruner.checkpoint.saving import weight_bytes, write_checkpoint
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.checkpoint.sentence import write_head
from faster_pruner.checkpoint.sizes import is_pruned
from faster_pruner.checkpoint.smaller_tokenizer import smaller, tokenizer_files, whole_tokenizer
from faster_pruner.checkpoint.tokens import TokenTensors, named_ids, select_tokens, token_tensors
from faster_pruner.checks import LARGEST_SEED, at_least, whole_number
from faster_pruner.data.tasks import Data
from faster_pruner.errors import OptionError, UnsupportedModelError, VerificationError
from faster_pruner.host.devices import environment
from faster_pruner.host.folders import Output, as_output, replacing
from faster_pruner.host.marks import FILES, RESULT_FILE, names_in
from faster_pruner.host.places import public_name
from faster_pruner.model.limits import input_names, longest_row
from faster_pruner.model.passes import all_tensors_in, device_of, inference
from faster_pruner.model.precision import usual_torch
from faster_pruner.progress import StageClock
from faster_pruner.report.card import CARD_FILE
from faster_pruner.results import strict_json
from faster_pruner.vocabulary.choosing import Choice, affected, choose, same_tokens
from faster_pruner.vocabulary.measured import VocabularyReport

# Key in result.json.
VOCABULARY = "vocabulary"
# Texts that the models before and after are compared on, a few at once, and their tokens.
_COMPARED, _AT_ONCE, _TOKENS = 16, 4, 32
# Largest difference of scores over the vocabulary, relative to the largest score: other matrix shapes round otherwise.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class VocabularyResult:
    """What `prune_vocabulary` gives back.

    Attributes:
        model: the model as it was opened again, a stock transformers class.
        tokenizer: as it was opened again.
        report: everything that was measured; `result.json` holds it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    report: VocabularyReport


@dataclass(frozen=True)
class _Corpus:
    """Texts that say which tokens stay, and others that tell what that does to texts not seen."""

    voting: list[str]
    held_out: list[str]


@dataclass(frozen=True)
class _Before:
    """A checkpoint before anything is changed in it.

    Attributes:
        place: where it was opened.
        opened: model, tokenizer and head.
        tokens: its tensors with an entry per token.
        choice: the tokens that stay.
        companions: its files with the new tokenizer.
        left_out: names of files that are not among them.
        returned: by batch of texts, what the model returns for them.
    """

    place: str
    opened: Opened
    tokens: TokenTensors
    choice: Choice
    companions: Companions
    left_out: list[str]
    returned: list[tuple[list[str], list[Tensor]]]


@usual_torch()
def prune_vocabulary(
    model: str | Path,
    texts: Iterable[str] | Data | Sequence[Data],
    *,
    output: str | Path | Output | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    run: Run | None = None,
) -> VocabularyResult:
    """Keep the tokens that a corpus uses, and what every other text needs to be encoded at all.

    Texts of the corpus get the same tokens as before, under new ids, and the model returns the same for them, bit for
    bit; scores over the vocabulary are those of the tokens that stay. Words that are not in the corpus may be encoded
    in smaller pieces.

    Args:
        model: local folder or hub id of a dense or pruned model with a fast tokenizer.
        texts: the corpus; of `Data` the training rows, or all rows of a single file.
        output: folder for the checkpoint and `result.json`; None keeps the result in memory only.
        held_out: share of the texts that has no say, and shows how much of unseen texts is encoded in another way.
        seed: of which texts those are.
        run: device and listener.

    Raises:
        InputError: see its subclasses in `errors`.
        VerificationError: the saved checkpoint did not behave like the model before; nothing was written.
    """
    place, target, run = as_place(model), as_output(output), run or Run()
    at_least("held_out", held_out, 0.0)
    if held_out >= 1:
        raise OptionError(f"held_out is {held_out:g}; it must be below 1: the other texts say which tokens stay")
    whole_number("seed", seed, 0, LARGEST_SEED)
    if target.statistics_path is not None:
        raise OptionError("a vocabulary is pruned without statistics; leave out the folder for them")
    given = as_corpus(texts)
    for rows in [None, *places_of(given)]:
        target.check(reads=[place], rows=rows)
    device = run.on()
    clock = run.clock(device)
    with clock.stage("load"):
        corpus = _split(texts_of(given), held_out, seed)
        opened = open_checkpoint(place, device=device)
    with clock.stage("vocabulary"):
        before = _chosen(place, opened, corpus)
        report = _report(before, corpus)
    target.check_space(folder=report.bytes_before + before.companions.bytes)
    select_tokens(opened.model, before.tokens, before.choice.kept)
    with _folder(target) as staging, clock.stage("save and verify"):
        return _saved(staging, before, corpus, report, clock)


def _split(texts: list[str], share: float, seed: int) -> _Corpus:
    """A share of the texts, drawn, is held out; each in the order in which they came."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = set(order[: int(share * len(texts))])
    return _Corpus(
        [text for i, text in enumerate(texts) if i not in chosen], [text for i, text in enumerate(texts) if i in chosen]
    )


def _chosen(place: str, opened: Opened, corpus: _Corpus) -> _Before:
    """The tokens that stay, proved on the corpus. Raises UnsupportedModelError, DataError."""
    document = whole_tokenizer(opened.processor)
    tokenizer: Any = opened.processor
    tokens = token_tensors(opened.model)
    files = tokenizer_files(tokenizer, read_companions(place))
    always = named_ids(opened.model, tokens) | files.named() | set(tokenizer.all_special_ids)
    choice = choose(document, corpus.voting, always=always)
    companions, left_out = smaller(files, choice)
    compared = [text for text in corpus.voting if text.strip()][:_COMPARED]
    groups = [compared[i : i + _AT_ONCE] for i in range(0, len(compared), _AT_ONCE)]
    returned = [(group, _returned(opened.model, tokenizer, group)) for group in groups]
    return _Before(place, opened, tokens, choice, companions, left_out, returned)


def _report(before: _Before, corpus: _Corpus) -> VocabularyReport:
    """What is known before anything is changed."""
    model, choice = before.opened.model, before.choice
    own = weight_bytes(Path(before.place)) if Path(before.place).is_dir() else 0
    return VocabularyReport(
        model=public_name(before.place),
        algorithm=choice.before.algorithm,
        tokens_before=len(choice.before.tokens),
        tokens=len(choice.after.tokens),
        used=choice.used,
        put_back=choice.put_back,
        rows_before=before.tokens.rows,
        rows=len(choice.kept),
        texts=len(corpus.voting),
        held_out=affected(choice, corpus.held_out) if corpus.held_out else None,
        bytes_before=own or stored_bytes(model, before.opened.dtype),
        bytes=0,
        tensors=before.tokens.shapes_with(len(choice.kept)),
        left_out=before.left_out,
        environment=environment(device_of(model)),
    )


@contextmanager
def _folder(target: Output) -> Generator[Path]:
    """A folder that takes the output's place when all went well; one that vanishes where there is no output."""
    if target.path is None:
        with tempfile.TemporaryDirectory(prefix="faster-pruner-") as temporary:
            yield Path(temporary)
    else:
        with replacing(target.path, overwrite=target.overwrite) as staging:
            yield staging


def _saved(
    staging: Path, before: _Before, corpus: _Corpus, report: VocabularyReport, clock: StageClock
) -> VocabularyResult:
    """Write, reopen, verify, and say so in the report. Raises OutputError, VerificationError."""
    opened = before.opened
    sublayers = opened.known if is_pruned(opened.model.config) else []
    write_checkpoint(staging, opened.model, sublayers, None, dtype=opened.dtype, companions=before.companions)
    if opened.head is not None:
        write_head(staging, opened.head)
    device = device_of(opened.model)
    reopened: Any = load(staging, dtype=torch.float32)
    reopened = reopened.to(device)
    tokenizer: Any = open_processor(str(staging), reopened)
    if not same_tokens(before.choice, whole_tokenizer(tokenizer), corpus.voting):
        raise VerificationError(
            "the saved tokenizer, as transformers opens it, gives other tokens than the one before; nothing was "
            "written. Please report this"
        )
    report = replace(
        report,
        verified=_compare(before, reopened, tokenizer, len(corpus.voting)),
        bytes=weight_bytes(staging),
        seconds=clock.seconds,
    )
    _write_report(staging, before.place, report)
    return VocabularyResult(reopened, tokenizer, report)


def _write_report(staging: Path, place: str, report: VocabularyReport) -> None:
    """result.json, beside what an earlier pruning has left: its report, its masks and the model card."""
    for name in (CARD_FILE, MASKS_FILE):
        if (Path(place) / name).is_file() and not (staging / name).exists():
            shutil.copyfile(Path(place) / name, staging / name)
    earlier: Any = {}
    with suppress(OSError, ValueError, RecursionError):
        earlier = json.loads((Path(place) / RESULT_FILE).read_text(encoding="utf-8"))
    known: dict[str, Any] = earlier if isinstance(earlier, dict) and FILES in earlier else {}
    files = sorted({*names_in(staging), RESULT_FILE})
    found = {**known, VOCABULARY: report.to_json(), FILES: files}
    (staging / RESULT_FILE).write_text(strict_json(found), encoding="utf-8")


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


def _compare(before: _Before, reopened: Any, tokenizer: Any, texts: int) -> str:
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
    return f"the tokens of {texts} texts are the same; what the model returns is bit-equal on {rows} of them{close}"
