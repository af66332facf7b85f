"""Checkpoints as people have them: in shards, tied, in half precision, quantised, with code, after training."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaForSequenceClassification,
)

import fresh
import stock_models as stock
import tiny
from badness import bad_input
from faster_pruner import CalibrationOptions, Data, inspect, load, prune, prune_model
from faster_pruner.errors import CheckpointError, InputError
from faster_pruner.model.describe import describe
from faster_pruner.model.passes import inference

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_latency")]

SMALL = CalibrationOptions(rows=16)
_INDEX = "model.safetensors.index.json"


def copied(folder: Path, place: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(folder, place))


def in_file(folder: Path) -> dict[str, torch.dtype]:
    """Dtypes by name of tensor."""
    found: dict[str, torch.dtype] = {}
    for file in folder.glob("*.safetensors"):
        found |= {key: value.dtype for key, value in load_file(file).items()}
    return found


def logits(model: Any, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(4, tiny.VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(seed))
    with inference(model):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


# Shards


def test_a_checkpoint_in_shards_is_pruned_like_one_in_a_file(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    shards = copied(checkpoint, tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    load(checkpoint).save_pretrained(shards, max_shard_size="10KB")
    names = set(json.loads((shards / _INDEX).read_text())["weight_map"].values())
    assert len(names) > 3
    rows = Data(task="sst2", folder=data)
    for source, out in ((checkpoint, "one"), (shards, "several")):
        prune(source, rows, macs=0.5, output=tmp_path / out, calibration=SMALL)
    one, several = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "several"))
    assert one.keys() == several.keys()
    assert all(torch.equal(one[key], several[key]) for key in one)
    # what was in the shards is not there a second time
    assert not [file for file in (tmp_path / "several").iterdir() if file.name in names or file.name == _INDEX]


def test_a_pruned_model_may_be_saved_in_shards(tmp_path: Path) -> None:
    model = stock.build("llama", cls="LlamaForSequenceClassification")
    batches = [stock.inputs_for(model, seed=seed) for seed in range(2)]
    result = prune_model(model, batches, macs=0.5)
    result.save(tmp_path / "small")
    expected = load(tmp_path / "small")
    expected.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert (tmp_path / "shards" / _INDEX).is_file()
    for reopened in (
        load(tmp_path / "shards"),
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "shards"),
    ):
        assert type(reopened) is LlamaForSequenceClassification
        assert reopened.state_dict().keys() == expected.state_dict().keys()
        assert all(torch.equal(v, expected.state_dict()[key]) for key, v in reopened.state_dict().items())
    assert inspect(tmp_path / "shards").pruned


# Tied weights

# Model, class, and what is one tensor under two names.
TIED: dict[str, tuple[str, str, str, str]] = {
    "gpt2": ("gpt2", "GPT2LMHeadModel", "transformer.wte.weight", "lm_head.weight"),
    "bert": (
        "bert",
        "BertForMaskedLM",
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    ),
    "t5": ("t5", "T5ForConditionalGeneration", "shared.weight", "encoder.embed_tokens.weight"),
}


@pytest.mark.parametrize("name", TIED)
def test_tied_weights_stay_tied_and_are_stored_once(name: str, tmp_path: Path) -> None:
    own, cls, first, second = TIED[name]
    model = stock.build(own, cls=cls, tie_word_embeddings=True)
    sublayers = stock.dense(own)[1].sublayers if own != "bert" else describe(model, stock.inputs_for(model)).sublayers
    smaller, left = stock.cut(model, sublayers, stock.some(sublayers))
    folder = stock.save(smaller, left, tmp_path / "saved")
    for each in (model, smaller, load(folder)):
        assert each.get_parameter(first).data_ptr() == each.get_parameter(second).data_ptr()
    stored = in_file(folder)
    assert len({first, second} & stored.keys()) == 1
    distinct = {parameter.data_ptr(): parameter.numel() for parameter in smaller.parameters()}
    weights = sum(value.numel() for file in folder.glob("*.safetensors") for value in load_file(file).values())
    assert sum(distinct.values()) <= weights < sum(distinct.values()) + 100


def test_a_tied_language_model_is_still_tied_after_pruning(tmp_path: Path) -> None:
    model = stock.build("gpt2", tie_word_embeddings=True)
    result = prune_model(model, [stock.inputs_for(model, seed=seed) for seed in range(2)], macs=0.5)
    result.save(tmp_path / "out")
    embeddings = model.get_input_embeddings().weight
    for each in (result.model, load(tmp_path / "out")):
        assert each.lm_head.weight is each.transformer.wte.weight
        assert torch.equal(each.lm_head.weight, embeddings)
    assert "lm_head.weight" not in in_file(tmp_path / "out")


# What comes along


def text_rows(folder: Path) -> Data:
    """Rows of text for a language model."""
    generator = torch.Generator().manual_seed(3)
    for split, count in (("train", 120), ("validation", 12)):
        words = torch.randint(0, len(tiny.WORDS), (count, 12), generator=generator).tolist()
        tiny.write_jsonl(folder / f"{split}.jsonl", [{"text": " ".join(f"w{i}" for i in row)} for row in words])
    return Data(folder=folder)


@pytest.mark.parametrize(("name", "dtype"), [("gpt2", torch.float32), ("llama", torch.bfloat16)])
def test_generation_settings_and_tokenizer_come_along(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    model = stock.build(name, vocab_size=tiny.VOCABULARY).to(dtype)
    model.generation_config = GenerationConfig(max_new_tokens=3, repetition_penalty=1.5, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(dense)
    tiny.make_tokenizer().save_pretrained(dense)
    prune(dense, text_rows(tmp_path / "rows"), macs=0.6, output=tmp_path / "out", calibration=SMALL)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (dense / name).read_bytes(), name
    assert set(in_file(tmp_path / "out").values()) == {dtype}
    reopened = load(tmp_path / "out")
    assert reopened.generation_config.repetition_penalty == 1.5
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("w1 w2", return_tensors="pt")
    given = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    assert reopened.generate(**given, eos_token_id=None).shape[1] == tokens["input_ids"].shape[1] + 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_what_it_is(dtype: torch.dtype, data: Path, tmp_path: Path) -> None:
    dense = tiny.save_checkpoint(tmp_path / "dense", dtype=dtype)
    report = prune(dense, Data(task="sst2", folder=data), macs=0.5, output=tmp_path / "out", calibration=SMALL).report
    stored = in_file(tmp_path / "out")
    assert set(in_file(dense).values()) == set(stored.values()) == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert "bit-equal" in report.verified
    assert load(tmp_path / "out", dtype=dtype).dtype is dtype
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").dtype is dtype


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox"])
def test_half_precision_of_rotary_positions(name: str, rounded: bool, tmp_path: Path) -> None:
    """Their frequencies are in no file: whoever opens one has them exact, also where the model in memory has not."""
    model = stock.build(name)
    if rounded:
        model.to(torch.bfloat16)
        assert {buffer.dtype for key, buffer in model.named_buffers() if "inv_freq" in key} == {torch.bfloat16}
    else:
        model.to(torch.bfloat16).save_pretrained(tmp_path / "dense")
        model = type(model).from_pretrained(tmp_path / "dense", dtype=torch.bfloat16).eval()
    batches = [stock.inputs_for(model, seed=seed) for seed in range(2)]
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    result = prune_model(model, batches, macs=0.5)
    assert "bit-equal" in result.save(tmp_path / "out").verified
    assert set(in_file(tmp_path / "out").values()) == {torch.bfloat16}
    assert result.model.dtype is torch.bfloat16
    # the given model is as it was, and the smaller one is what everybody opens
    assert all(torch.equal(buffer, before[key]) for key, buffer in model.named_buffers())
    reopened = load(tmp_path / "out", dtype=torch.bfloat16)
    buffers = dict(reopened.named_buffers())
    for key, buffer in result.model.named_buffers():
        if "inv_freq" in key:
            assert buffer.dtype is torch.float32, key
            assert torch.equal(buffer, buffers[key]), key
    assert all(map(torch.equal, stock.values(result.model, batches[0]), stock.values(reopened, batches[0])))


# What is refused


def rewritten(folder: Path, **changes: Any) -> None:
    """Change fields of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def packed(tensors: dict[str, torch.Tensor]) -> None:
    """As GPTQ packs its weights."""
    for key in [key for key in tensors if key.endswith("query.weight")]:
        tensors[key.replace("weight", "qweight")] = tensors.pop(key).to(torch.int32)


def adapter(folder: Path, *, whole: bool) -> None:
    """What peft saves, beside a whole model or alone."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    if not whole:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()


_QUANTISED: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    # as old versions wrote it
    "bitsandbytes without a method": {"load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "mxfp4": {"quant_method": "mxfp4"},
}
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{
        name: ((lambda folder, own=own: rewritten(folder, quantization_config=own)), "is quantised")
        for name, own in _QUANTISED.items()
    },
    "mlx": (lambda folder: rewritten(folder, quantization={"group_size": 64, "bits": 4}), "is quantised"),
    "old gptq": (
        lambda folder: (with_tensors(folder, packed), (folder / "quantize_config.json").write_text('{"bits": 4}')),
        "is quantised",
    ),
    "modelopt": (lambda folder: (folder / "hf_quant_config.json").write_text("{}"), "is quantised"),
    "an adapter": (lambda folder: adapter(folder, whole=False), "merge it into its base model first"),
    "an adapter beside a model": (lambda folder: adapter(folder, whole=True), "merge it into its base model first"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_quantised_checkpoints_and_adapters_are_refused(
    kind: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    bad_input(f"a folder: {kind}")
    folder = copied(checkpoint, tmp_path / "folder")
    change, message = REFUSED[kind]
    change(folder)
    for attempt in (
        lambda: load(folder),
        lambda: inspect(folder),
        lambda: prune(folder, Data(task="sst2", folder=data), macs=0.5, output=tmp_path / "out", calibration=SMALL),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert ("dequantise" in str(caught.value)) == (message == "is quantised")
    assert not (tmp_path / "out").exists()


# Code and pickles


class Marking:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_what_training_left_behind_is_neither_copied_nor_unpickled(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    folder, mark = copied(checkpoint, tmp_path / "folder"), tmp_path / "mark"
    left = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin", "scaler.pt"]
    for name in left:
        (folder / name).write_bytes(pickle.dumps(Marking(mark)))
    for name in ("trainer_state.json", "all_results.json", "runs/Jan01/events.out.tfevents.1", "checkpoint-5/x.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
        left.append(name.split("/")[0])
    shutil.copy(folder / "config.json", folder / "checkpoint-5" / "config.json")
    load(folder)
    inspect(folder)
    prune(folder, Data(task="sst2", folder=data), macs=0.5, output=tmp_path / "out", calibration=SMALL)
    assert not mark.exists()
    assert not {file.name for file in (tmp_path / "out").iterdir()} & set(left)
    # the files are what they are meant to be
    pickle.loads((folder / "optimizer.pt").read_bytes())
    assert mark.exists()


_CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import BertForSequenceClassification, BertConfig, PreTrainedTokenizerFast
class Own(BertForSequenceClassification): ...
class OwnConfig(BertConfig): ...
class OwnTokenizer(PreTrainedTokenizerFast): ...
"""


@pytest.fixture
def with_code(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that names code of its own, for a type that transformers has; running it leaves a mark."""
    folder = copied(checkpoint, tmp_path / "folder")
    (folder / "modeling_own.py").write_text(_CODE.format(mark=str(tmp_path / "mark")))
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForSequenceClassification": "modeling_own.Own"}
    rewritten(folder, auto_map=own)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "modeling_own.OwnTokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_with_code_opens_with_the_class_of_transformers(
    with_code: Path, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    expected = load(checkpoint)
    opened = load(with_code)
    assert type(opened) is type(expected)
    assert torch.equal(logits(opened), logits(expected))
    inspect(with_code)
    prune(with_code, Data(task="sst2", folder=data), macs=0.5, output=tmp_path / "out", calibration=SMALL)
    assert not (tmp_path / "mark").exists()
    # what is written names no code but our own, and does not bring theirs along
    assert {file.name for file in (tmp_path / "out").glob("*.py")} <= {"modeling_faster_pruner.py"}
    for name in ("config.json", "tokenizer_config.json"):
        assert "modeling_own" not in (tmp_path / "out" / name).read_text()
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")) is type(expected)
    AutoTokenizer.from_pretrained(tmp_path / "out")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Own"]}, "names the architecture"),
        ({"model_type": "own"}, "its folder brings code of its own, which is never run"),
    ],
)
def test_a_folder_whose_class_is_only_in_its_code_is_refused(
    changes: dict[str, Any], message: str, with_code: Path, data: Path, tmp_path: Path
) -> None:
    bad_input(f"a folder with code: {changes}")
    rewritten(with_code, **changes)
    for attempt in (
        lambda: load(with_code),
        lambda: prune(with_code, Data(task="sst2", folder=data), macs=0.5, output=tmp_path / "out", calibration=SMALL),
    ):
        with pytest.raises(InputError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


# Elsewhere

_CHILD = """
import json, sys, torch, transformers
from safetensors.torch import load_file, save_file
for folder in sys.argv[1:]:
    auto = getattr(transformers, next(iter(json.load(open(folder + "/config.json"))["auto_map"])))
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        save_file({"logits": model(**load_file(folder + "/in.st")).logits.contiguous()}, folder + "/out.st")
assert "faster_pruner" not in sys.modules
"""


def test_emptied_branches_open_where_nobody_knows_us(tmp_path: Path) -> None:
    """What initialises some classes in transformers (GPT-2's, T5's) reaches into what is not there any more."""
    expected: dict[str, torch.Tensor] = {}
    for name in ("gpt2", "t5", "mpnet", "deberta-v2"):
        model, described = stock.dense(name)
        smaller, left = stock.cut(model, described.sublayers, stock.least(described.sublayers))
        folder, inputs = stock.save(smaller, left, tmp_path / name), stock.inputs_for(model)
        save_file({key: value.clone().contiguous() for key, value in inputs.items()}, folder / "in.st")
        expected[str(folder)] = stock.values(smaller, inputs)[0]
    fresh.run(_CHILD, *expected)
    for folder, value in expected.items():
        with safe_open(f"{folder}/out.st", framework="pt") as file:
            assert torch.allclose(file.get_tensor("logits"), value, atol=1e-5), folder
