"""The vocabulary of a real encoder, restricted to the docstrings of the standard library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fresh
from faster_pruner import prune_vocabulary
from faster_pruner.api.demo import PACKAGE, collect_docstrings, encoder_folder


def test_all_minilm_on_docstrings(tmp_path: Path) -> None:
    pytest.importorskip(PACKAGE)
    package: Any = pytest.importorskip("sentence_transformers")
    texts = sorted(text for part in collect_docstrings().values() for text in part)[::3]
    result = prune_vocabulary(encoder_folder(), texts, output=tmp_path / "small", held_out=0.1)
    report = result.report
    assert report.algorithm == "WordPiece"
    assert report.bytes_before - report.bytes == report.bytes_saved
    # 384 numbers of four bytes for each token that is gone, and a buffer of positions that is in no file any more
    assert report.bytes_saved == pytest.approx(384 * 4 * (30522 - report.rows), abs=5000)
    assert report.bytes_saved > 0.35 * report.bytes_before
    assert report.held_out is not None
    assert 0 < report.held_out.affected_words < 0.1 * report.held_out.words

    prune_vocabulary(encoder_folder(), texts, output=tmp_path / "all", held_out=0)
    places = (encoder_folder(), tmp_path / "all")
    dense, small = (package.SentenceTransformer(str(place), device="cpu") for place in places)
    assert small.max_seq_length == dense.max_seq_length
    assert [str(module).splitlines()[0] for module in small] == [str(module).splitlines()[0] for module in dense]
    some = texts[::24]
    assert torch.equal(dense.encode(some, convert_to_tensor=True), small.encode(some, convert_to_tensor=True))
    # whoever has no faster-pruner opens it, too
    script = (
        "import sys\nfrom sentence_transformers import SentenceTransformer\n"
        f"found = SentenceTransformer({str(tmp_path / 'all')!r}, device='cpu').encode([{some[0]!r}])\n"
        "print(found[0, :3].tolist(), 'faster_pruner' in sys.modules)"
    )
    printed = fresh.run(script, packages=("sentence_transformers",)).stdout
    assert printed.strip() == f"{dense.encode([some[0]])[0, :3].tolist()} False"
