"""Thirty of transformers' model types through the whole contract that `benchmarks/coverage.py` holds all of them to."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Each has something that no other has: see docs/coverage.md for all.
_NAMES = {
    "AutoModelForSequenceClassification": (
        *("albert", "bart", "convbert", "deberta", "deberta-v2", "electra", "esm", "funnel"),
        *("gte", "modernbert", "mpnet", "nomic_bert", "rembert", "roformer", "t5"),
    ),
    "AutoModelForCausalLM": (
        *("bloom", "falcon", "gemma3_text", "gpt2", "gpt_neox", "mixtral", "olmo2", "opt", "phi3", "qwen3"),
    ),
    "AutoModelForImageClassification": ("beit", "dinov2", "swin"),
    "AutoModel": ("clip", "whisper"),
}
SAMPLE = [(auto, name) for auto, names in _NAMES.items() for name in names]


@pytest.fixture(scope="module")
def walk() -> ModuleType:
    """The benchmark, by its path: a package of the same name is often installed."""
    spec = importlib.util.spec_from_file_location("coverage_of_models", _BENCHMARKS / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_BENCHMARKS))
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("auto", "name"), SAMPLE)
def test_it_is_found_proved_pruned_saved_and_opened(auto: str, name: str, walk: ModuleType, tmp_path: Path) -> None:
    answer = walk.one(auto, name, tmp_path)
    assert (answer["stage"], answer["reason"]) == ("passed", "")
    assert answer["kept"] <= answer["share"]


def test_there_are_thirty() -> None:
    assert len(set(SAMPLE)) == 30
