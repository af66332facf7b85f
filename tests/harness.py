"""A stand-in for lm-eval, which is not among what tests need: it is called, and answers, as that is and does."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it where `import lm_eval` finds it."""

    class HFLM:
        def __init__(self, *, pretrained: Any, tokenizer: Any, batch_size: int, device: str) -> None:
            self.model, self.tokenizer, self.rows = pretrained, tokenizer, batch_size
            assert next(pretrained.parameters()).device.type == device.split(":")[0]

    def simple_evaluate(
        *, model: HFLM, tasks: list[str], limit: int | None, bootstrap_iters: int, log_samples: bool
    ) -> dict[str, Any]:
        assert not log_samples
        assert bootstrap_iters == 0
        known = {
            "hellaswag": {"acc,none": 0.25, "acc_stderr,none": "N/A", "acc_norm,none": 0.5},
            "wikitext": {"word_perplexity,none": 31.5, "word_perplexity_stderr,none": "N/A"},
            "gsm8k": {"exact_match,strict-match": 0.125, "exact_match,flexible-extract": 0.75},
            "piqa": {"acc,none": 0.75, "acc_stderr,none": 0.01},
        }
        for task in tasks:
            if task not in known:
                raise KeyError(f"Spec {task!r} is not a registered task/group/tag name or valid YAML path")
        results = {task: {"name": task, "alias": task, "sample_len": 8, **known[task]} for task in tasks}
        counts = {task: {"original": 1000, "effective": min(limit or 1000, 1000)} for task in tasks}
        return {"results": results, "n-samples": counts}

    package, models, huggingface = (
        ModuleType(name) for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface")
    )
    vars(package).update(simple_evaluate=simple_evaluate, models=models)
    vars(models).update(huggingface=huggingface)
    vars(huggingface).update(HFLM=HFLM)
    for module in (package, models, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
