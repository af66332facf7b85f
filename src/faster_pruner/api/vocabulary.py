"""Prune a vocabulary: embeddings and tokenizer keep the tokens that a corpus uses, and what every text needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from faster_pruner.api.corpus import Texts, Vocabulary
from faster_pruner.api.page import page_of
from faster_pruner.api.run import Run
from faster_pruner.api.smaller_vocabulary import choose_tokens, write_smaller
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.screening import as_place
from faster_pruner.errors import one_line
from faster_pruner.host.folders import Output, as_output, replacing
from faster_pruner.host.launch import only_one
from faster_pruner.host.marks import FILES, MASKS_FILE, PAGE_FILE, RESULT_FILE, names_in
from faster_pruner.host.temporary import temporary_folder
from faster_pruner.model.precision import usual_torch
from faster_pruner.report.card import CARD_FILE
from faster_pruner.results import strict_json
from faster_pruner.vocabulary.measured import VOCABULARY, VocabularyReport


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


@usual_torch()
def prune_vocabulary(
    model: str | Path,
    texts: Texts,
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
    only_one("pruning a vocabulary")
    place, target = as_place(model), as_output(output)
    wanted = Vocabulary(texts=texts, held_out=held_out, seed=seed)
    wanted.check(target, reads=place)
    target.check_anew("pruning a vocabulary")
    return tokens_pruned(place, wanted, target, run or Run())


def tokens_pruned(place: str, wanted: Vocabulary, target: Output, run: Run) -> VocabularyResult:
    """Open, choose, write and verify; everything has been checked. Raises as `prune_vocabulary` does."""
    device = run.on()
    clock = run.clock(device)
    with clock.stage("load"):
        corpus = wanted.read()
        opened = open_checkpoint(place, device=device)
    with clock.stage("vocabulary"):
        chosen = choose_tokens(place, opened, corpus)
    target.check_space(folder=chosen.bytes_before + chosen.companions.bytes)
    with _folder(target) as staging, clock.stage("save and verify"):
        found = write_smaller(staging, chosen)
        report = _write_report(staging, place, replace(found.report, seconds=clock.seconds))
        tokenizer: Any = found.opened.processor
        return VocabularyResult(found.opened.model, tokenizer, report)


@contextmanager
def _folder(target: Output) -> Generator[Path]:
    """A folder that takes the output's place when all went well; one that vanishes where there is no output."""
    if target.path is None:
        with temporary_folder() as temporary:
            yield temporary
    else:
        with replacing(target.path, overwrite=target.overwrite) as staging:
            yield staging


def _write_report(staging: Path, place: str, report: VocabularyReport) -> VocabularyReport:
    """result.json, beside what an earlier pruning has left: its report, its masks and the model card; and the page.

    Returns:
        The report that result.json holds.
    """
    for name in (CARD_FILE, MASKS_FILE):
        if (Path(place) / name).is_file() and not (staging / name).exists():
            shutil.copyfile(Path(place) / name, staging / name)
    earlier: Any = {}
    with suppress(OSError, ValueError, RecursionError):
        earlier = json.loads((Path(place) / RESULT_FILE).read_text(encoding="utf-8"))
    known: dict[str, Any] = earlier if isinstance(earlier, dict) and FILES in earlier else {}
    result = staging / RESULT_FILE
    result.write_text(strict_json({**known, VOCABULARY: report.to_json()}), encoding="utf-8")
    try:
        shown = page_of(staging).encode()
    except Exception as error:  # an earlier result, and names, are anybody's: the checkpoint is worth more than a page
        report = replace(report, warnings=[*report.warnings, f"there is no {PAGE_FILE}: {one_line(error)}"])
    else:
        (staging / PAGE_FILE).write_bytes(shown)
    files = sorted({*names_in(staging), RESULT_FILE})
    found = {**known, VOCABULARY: report.to_json(), FILES: files}
    result.write_text(strict_json(found), encoding="utf-8")
    return report
