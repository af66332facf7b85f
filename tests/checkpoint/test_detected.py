"""Checkpoints of models that no row of the table describes: saved with what was found, and opened by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import fresh
import tiny
from badness import bad_input
from faster_pruner import load, prune_model
from faster_pruner.checkpoint.opening import open_checkpoint
from faster_pruner.checkpoint.sizes import sublayers_of
from faster_pruner.errors import CheckpointError

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]

_USUAL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TYPES: dict[str, dict[str, Any]] = {
    "electra": {**_USUAL, "embedding_size": 32},
    "llama": {**_USUAL, "num_key_value_heads": 2},
    # old names of tensors in its files, which transformers renames for classes of its own
    "gpt_neox": _USUAL,
    # two stacks
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "forced_eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
    # one layer that runs three times
    "albert": {**_USUAL, "num_hidden_layers": 3, "embedding_size": 16},
}


def model_of(name: str) -> PreTrainedModel:
    words = {"vocab_size": tiny.VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 3}
    config = AutoConfig.for_model(name, **words, **TYPES[name])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.25)
    return model


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, tiny.VOCABULARY, (6, 7), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Folders by type, and what the models in them return."""
    found: dict[str, tuple[Path, torch.Tensor]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("faster_pruner.api.outcome.measure", lambda *given, **options: [])
        for name in TYPES:
            result = prune_model(model_of(name), [inputs(), inputs()], macs=0.6)
            folder = tmp_path_factory.mktemp("detected") / name
            assert "bit-equal" in result.save(folder).verified
            with torch.no_grad():
                found[name] = folder, result.model(**inputs()).logits
    return found


@pytest.mark.parametrize("name", sorted(TYPES))
def test_they_are_reopened_with_faster_pruner(name: str, pruned: dict[str, tuple[Path, torch.Tensor]]) -> None:
    folder, expected = pruned[name]
    for model in (load(folder), AutoModelForSequenceClassification.from_pretrained(folder)):
        with torch.no_grad():
            assert torch.equal(model.eval()(**inputs()).logits, expected)
        assert {s.name: s.units for s in sublayers_of(model)} == model.config.faster_pruner["sizes"]


_CHILD = """
import sys, torch, transformers
from safetensors.torch import load_file, save_file
inputs = load_file(sys.argv[1])
auto = transformers.AutoModelForSequenceClassification
for folder in sys.argv[2:]:
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        save_file({"logits": model(**inputs).logits}, folder + "/trusting.out")
    try:
        auto.from_pretrained(folder)
    except Exception as error:
        open(folder + "/plain.txt", "w").write(f"{type(error).__name__}: {error}")
assert "faster_pruner" not in sys.modules
"""


def test_they_are_reopened_elsewhere_or_refused_loudly(
    pruned: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file(inputs(), tmp_path / "inputs.safetensors")
    folders = [str(folder) for folder, _ in pruned.values()]
    fresh.run(_CHILD, tmp_path / "inputs.safetensors", *folders)
    for name, (folder, expected) in pruned.items():
        assert torch.allclose(load_file(folder / "trusting.out")["logits"], expected, atol=1e-6), name
        if name != "albert":
            assert (folder / "plain.txt").read_text(), name


def test_a_pruned_one_is_pruned_again_by_its_own_description(
    pruned: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path
) -> None:
    again = prune_model(load(pruned["llama"][0]), [inputs(), inputs()], macs=0.6)
    again.save(tmp_path / "again")
    before, after = (sublayers_of(load(folder)) for folder in (pruned["llama"][0], tmp_path / "again"))
    assert [s.name for s in before] == [s.name for s in after]
    assert sum(s.columns for s in after) < sum(s.columns for s in before)


def test_an_opened_checkpoint_says_where_its_description_comes_from(
    pruned: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path
) -> None:
    for source, origin in ((model_of("electra"), "detected"), (tiny.make_model("bert"), "table")):
        folder = tmp_path / origin
        source.save_pretrained(folder)
        tiny.make_tokenizer().save_pretrained(folder)
        assert open_checkpoint(folder, device=torch.device("cpu")).describe().origin == origin
    folder = pruned["electra"][0]
    tiny.make_tokenizer().save_pretrained(folder)
    assert open_checkpoint(folder, device=torch.device("cpu")).describe().origin == "recorded"


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (None, "must be an object"),
        ({"stacks": [{"layers": "no.such.layers", "sublayers": []}]}, "no sublayers"),
        ("remove", "neither it nor the table says"),
        ("elsewhere", "has no layers at"),
    ],
)
def test_a_damaged_description_is_one_line(
    family: Any, message: str, pruned: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path
) -> None:
    import shutil

    bad_input(f"recorded family {family!r}")
    folder = Path(shutil.copytree(pruned["electra"][0], tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    if family == "remove":
        del config["faster_pruner"]["family"]
    elif family == "elsewhere":
        config["faster_pruner"]["family"]["stacks"][0]["layers"] = "no.such.layers"
    else:
        config["faster_pruner"]["family"] = family
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
