"""What a caller has set in torch is theirs: it changes no result and is there again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from faster_pruner import load, prune_model


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default(torch.float64),
    "bfloat16": lambda: default(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad disabled": lambda: torch.set_grad_enabled(False),
}


def results(model: Any, batches: list[dict[str, Any]], checkpoint: Path) -> list[dict[str, Tensor]]:
    return [each.state_dict() for each in (prune_model(model, batches, macs=0.5).model, load(checkpoint))]


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_changes_no_result(setting: str, checkpoint: Path) -> None:
    model = tiny.make_model()
    batches: list[dict[str, Any]] = [
        {**batch.inputs, "labels": batch.labels} for batch in tiny.make_batches(tiny.make_rows(24))
    ]
    expected = results(model, batches, checkpoint)
    with SETTINGS[setting]():
        found = results(model, batches, checkpoint)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value.dtype is other[key].dtype
            assert torch.equal(value, other[key])
            assert not other[key].is_inference()
