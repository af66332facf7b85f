"""What decoders are compared with (`benchmarks/decoder_baselines.py`), against slow readings of the papers."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from argparse import Namespace
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from faster_pruner.costs.cost import Macs, total
from faster_pruner.data.batches import EncodedRows, pack
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.model.describe import describe
from faster_pruner.model.network import Network
from faster_pruner.model.spec import Sublayer

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LENGTH, GROUPS, QUERIES, HEAD = 9, 4, 2, 8


def load(name: str) -> ModuleType:
    """A module of the benchmarks, by its path."""
    spec = importlib.util.spec_from_file_location(name, _BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # dataclasses look for the module that they are in
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def baselines() -> ModuleType:
    """The other methods."""
    return load("decoder_baselines")


@pytest.fixture
def beside(baselines: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the benchmarks find each other."""
    monkeypatch.setitem(sys.modules, "decoder_baselines", baselines)
    for name in ("common", "decoder_torch_pruning", "decoders_page"):
        monkeypatch.setitem(sys.modules, name, load(name))


def make_llama(queries: int) -> Network:
    """A Llama with so many queries to a key, and its sublayers."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": HEAD}
    config = LlamaConfig(vocab_size=64, num_attention_heads=GROUPS * queries, num_key_value_heads=GROUPS, **sizes)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.2)
    described = describe(model, {"input_ids": torch.randint(0, 64, (3, LENGTH))})
    return Network(model, described.sublayers)


@pytest.fixture(scope="module")
def dense() -> Network:
    """A model that no test changes."""
    return make_llama(QUERIES)


@pytest.fixture(scope="module")
def data(dense: Network) -> CalibrationSet:
    """Blocks of one length, in several batches."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 64, (14, LENGTH), generator=generator).tolist()
    rows = EncodedRows(tokens=[{"input_ids": each} for each in ids], labels=None, padding={"input_ids": 0})
    batches = pack(rows, tokens_per_batch=5 * LENGTH, device=torch.device("cpu"))
    assert len(batches) > 2
    return CalibrationSet(batches, {dense.sublayers[0].stack.name: float(LENGTH)}, seed=0)


def dense_macs(dense: Network, data: CalibrationSet) -> float:
    return total(Macs(data.lengths), dense.sublayers)


def matrices(model: nn.Module, s: Sublayer) -> dict[str, Tensor]:
    """The weights of a layer by what Llama calls them."""
    layer: Any = model.get_submodule(s.prefix.removesuffix("."))
    parts = (
        {name: getattr(layer.self_attn, f"{name}_proj") for name in "qkvo"}
        if s.spec.kind == "attention"
        else {name: getattr(layer.mlp, f"{name}_proj") for name in ("gate", "up", "down")}
    )
    return {name: module.weight.detach().double() for name, module in parts.items()}


def inputs_of(
    model: nn.Module, s: Sublayer, data: CalibrationSet, replaced: Mapping[str, tuple[Tensor, Tensor]], network: Network
) -> Tensor:
    """[T, n]: what a projection is given, one row of tokens after the other, with columns of some inputs replaced."""
    found: list[Tensor] = []
    handle = s.projection(model).register_forward_pre_hook(lambda _m, args: found.append(args[0].flatten(0, 1)))
    try:
        with given(model, network, replaced), torch.no_grad():
            for batch in data.batches:
                for ids in batch.inputs["input_ids"]:
                    model(input_ids=ids[None])
    finally:
        handle.remove()
    return torch.cat(found).double()


@contextmanager
def given(model: nn.Module, network: Network, replaced: Mapping[str, tuple[Tensor, Tensor]]) -> Generator[None]:
    """By sublayer (gone [n] bool, value [n]): its projection is given those values in those columns."""

    def replacing(gone: Tensor, value: Tensor) -> Any:
        return lambda _m, args: (torch.where(gone, value.to(args[0]), args[0]),)

    with ExitStack() as stack:
        for s in network.sublayers:
            if s.name in replaced:
                hook = replacing(*replaced[s.name])
                stack.callback(s.projection(model).register_forward_pre_hook(hook).remove)
        yield


def logits(model: nn.Module, data: CalibrationSet) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch.inputs).logits for batch in data.batches])


def kept_neurons(dense: Network, pruned: nn.Module, layer: int) -> list[int]:
    """Which neurons of a layer are left, by their rows of the up projection."""
    before = dense.model.get_submodule(f"model.layers.{layer}.mlp.up_proj").weight
    after = pruned.get_submodule(f"model.layers.{layer}.mlp.up_proj").weight
    return [int((before == row).all(dim=1).nonzero()) for row in after]  # type: ignore[union-attr]


def test_the_magnitude_of_a_unit_is_the_norm_of_all_its_weights(baselines: ModuleType, dense: Network) -> None:
    attention, ffn = dense.sublayers[0], dense.sublayers[1]
    w = matrices(dense.model, attention)
    for unit, found in enumerate(baselines.magnitudes(dense.model, attention)):
        wide = slice(unit * QUERIES * HEAD, (unit + 1) * QUERIES * HEAD)
        own = slice(unit * HEAD, (unit + 1) * HEAD)
        parts = [w["q"][wide], w["k"][own], w["v"][own], w["o"][:, wide]]
        assert float(found) == pytest.approx(float(torch.cat([part.flatten() for part in parts]).norm()), rel=1e-6)
    w = matrices(dense.model, ffn)
    for unit, found in enumerate(baselines.magnitudes(dense.model, ffn)):
        whole = torch.cat([w["gate"][unit], w["up"][unit], w["down"][:, unit]])
        assert float(found) == pytest.approx(float(whole.norm()), rel=1e-6)


def test_sums_over_tokens_are_those_of_all_tokens_at_once(
    baselines: ModuleType, dense: Network, data: CalibrationSet
) -> None:
    sums = baselines.sums_of_inputs(dense, data)
    for s in dense.sublayers:
        x = inputs_of(dense.model, s, data, {}, dense)
        assert x.shape[0] == sums[s.name].count == 14 * LENGTH
        torch.testing.assert_close(sums[s.name].mean, x.mean(dim=0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(sums[s.name].variance, x.var(dim=0), rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(sums[s.name].norm, x.norm(dim=0), rtol=1e-5, atol=1e-7)


def flap_by_hand(dense: Network, data: CalibrationSet) -> dict[str, list[float]]:
    """Scores of units, column by column."""
    found: dict[str, list[float]] = {}
    for s in dense.sublayers:
        x, w = inputs_of(dense.model, s, data, {}, dense), s.weight(dense.model).detach().double()
        columns: list[float] = []
        for c in range(s.columns):
            mean = sum(x[:, c]) / len(x)
            variance = sum((x[:, c] - mean) ** 2) / (len(x) - 1)
            score = float(variance * sum(w[:, c] ** 2))
            columns.append(score**2 if s.spec.kind == "attention" else score)
        mean = sum(columns) / len(columns)
        deviation = (sum((c - mean) ** 2 for c in columns) / (len(columns) - 1)) ** 0.5
        standard = [(c - mean) / deviation for c in columns]
        g = s.unit_size
        found[s.name] = [sum(standard[u * g : (u + 1) * g]) / g for u in range(s.units)]
    return found


@pytest.mark.parametrize("share", [0.85, 0.5])
def test_flap_replaces_the_least_fluctuating_units_by_their_means(
    baselines: ModuleType, dense: Network, data: CalibrationSet, share: float
) -> None:
    scores = flap_by_hand(dense, data)
    cost, most = Macs(data.lengths), share * dense_macs(dense, data)
    left, keep = most, {s.name: set[int]() for s in dense.sublayers}
    by_name = {s.name: s for s in dense.sublayers}
    for _, name, unit in sorted(((-x, name, u) for name, own in scores.items() for u, x in enumerate(own))):
        price = float(cost.of(by_name[name], torch.tensor([1]))[0])
        if price <= left:
            keep[name].add(unit)
            left -= price
    pruned = baselines.flap(dense, data)(most)
    assert {s.name: s.units for s in pruned.sublayers} == {name: len(units) for name, units in keep.items()}
    assert any(len(keep[s.name]) < s.units for s in dense.sublayers)
    replaced: dict[str, tuple[Tensor, Tensor]] = {}
    for s in dense.sublayers:
        gone = torch.tensor([unit not in keep[s.name] for unit in range(s.units)]).repeat_interleave(s.unit_size)
        replaced[s.name] = gone, inputs_of(dense.model, s, data, {}, dense).mean(dim=0)
    with given(dense.model, dense, replaced):
        wanted = logits(dense.model, data)
    torch.testing.assert_close(logits(pruned.model, data), wanted, rtol=1e-4, atol=1e-4)
    biases = sum(name.endswith("bias") for name, _ in pruned.model.named_parameters())
    assert biases == sum(len(keep[s.name]) < s.units for s in dense.sublayers)


def test_wanda_scores_what_the_model_pruned_so_far_computes(
    baselines: ModuleType, dense: Network, data: CalibrationSet
) -> None:
    most = 0.6 * dense_macs(dense, data)
    pruned = baselines.wanda_sp(dense, data)(most)
    left = {s.name: s.units for s in pruned.sublayers}
    replaced: dict[str, tuple[Tensor, Tensor]] = {}
    for s in dense.sublayers:
        x, w = inputs_of(dense.model, s, data, replaced, dense), s.weight(dense.model).detach().double()
        scores = [
            sum(float((w[:, c].abs() * x[:, c].norm()).mean()) for c in range(u * s.unit_size, (u + 1) * s.unit_size))
            for u in range(s.units)
        ]
        chosen = sorted(range(s.units), key=lambda u: -scores[u])[: left[s.name]]
        gone = torch.tensor([u not in chosen for u in range(s.units)]).repeat_interleave(s.unit_size)
        replaced[s.name] = gone, torch.zeros(s.columns)
    with given(dense.model, dense, replaced):
        wanted = logits(dense.model, data)
    torch.testing.assert_close(logits(pruned.model, data), wanted, rtol=1e-4, atol=1e-4)


def test_magnitude_keeps_the_largest_of_every_layer(
    baselines: ModuleType, dense: Network, data: CalibrationSet
) -> None:
    pruned = baselines.magnitude(dense, data)(0.6 * dense_macs(dense, data))
    for layer, s in enumerate(dense.sublayers[1::2]):
        w = matrices(dense.model, s)
        norms = [float(torch.cat([w["gate"][u], w["up"][u], w["down"][:, u]]).norm()) for u in range(s.units)]
        kept = kept_neurons(dense, pruned.model, layer)
        assert len(kept) < s.units
        assert kept == sorted(sorted(range(s.units), key=lambda u: -norms[u])[: len(kept)])


@pytest.mark.parametrize("share", [0.95, 0.8, 0.5, 0.2])
def test_all_meet_the_budget_and_spend_it(
    baselines: ModuleType, dense: Network, data: CalibrationSet, share: float
) -> None:
    cost, whole = Macs(data.lengths), dense_macs(dense, data)
    before = {name: value.clone() for name, value in dense.model.state_dict().items()}
    largest = max(float(cost.of(s, torch.tensor([1]))[0]) for s in dense.sublayers)
    for name, prepare in baselines.BASELINES.items():
        pruned = prepare(dense, data)(share * whole)
        spent = total(cost, pruned.sublayers)
        # where all lose one share, a step takes a unit of every sublayer of a kind
        coarse = len(dense.sublayers) * largest if name in ("magnitude", "Wanda-sp") else largest
        assert share * whole - coarse < spent <= share * whole * (1 + 1e-6), name
        assert logits(pruned.model, data).isfinite().all(), name
    assert all(torch.equal(before[name], value) for name, value in dense.model.state_dict().items())


def test_groups_lose_the_share_of_the_budget_and_neurons_the_rest(
    baselines: ModuleType, dense: Network, data: CalibrationSet
) -> None:
    """Against every number of neurons."""
    cost = Macs(data.lengths)
    for wanted, groups in ((0.9, 4), (0.74, 3), (0.7, 3), (0.45, 2)):
        most = wanted * dense_macs(dense, data)
        fitting: list[int] = []
        for neurons in range(25):
            left = {s.name: groups if s.spec.kind == "attention" else neurons for s in dense.sublayers}
            if sum(float(cost.of(s, torch.tensor([left[s.name]]))[0]) for s in dense.sublayers) <= most * (1 + 1e-9):
                fitting.append(neurons)
        found = baselines.same_share(dense.sublayers, cost, most)
        assert {found[s.name] for s in dense.sublayers[::2]} == {groups}
        assert {found[s.name] for s in dense.sublayers[1::2]} == {max(fitting)}


@pytest.mark.parametrize(("queries", "lost", "taylor"), [(4, 1, False), (4, 1, True), (2, 0, False)])
def test_torch_pruning_removes_query_heads_of_every_group_and_neurons(
    data: CalibrationSet, beside: None, queries: int, lost: int, taylor: bool
) -> None:
    pytest.importorskip("torch_pruning")
    other = load("decoder_torch_pruning")
    dense = make_llama(queries)
    gradients = other.loss_gradients(dense, data) if taylor else None
    share = 0.75 if lost else 0.9
    pruned = other.pruned(dense, data, share * dense_macs(dense, data), gradients)
    replaced: dict[str, tuple[Tensor, Tensor]] = {}
    for s in dense.sublayers:
        before, after = s.weight(dense.model), s.projection(pruned).weight
        left = torch.tensor([bool((column == after.T).all(dim=1).any()) for column in before.T])  # type: ignore[union-attr]
        assert int(left.sum()) == after.shape[1]
        replaced[s.name] = ~left, torch.zeros(s.columns)
        if s.spec.kind == "attention":
            in_group = left.view(GROUPS, queries, HEAD)
            assert (in_group.all(dim=2) == in_group.any(dim=2)).all()
            assert (in_group.any(dim=2).sum(dim=1) == queries - lost).all()
        else:
            assert after.shape[1] < s.columns
    with given(dense.model, dense, replaced):
        wanted = logits(dense.model, data)
    torch.testing.assert_close(logits(pruned, data), wanted, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in dense.model.parameters())


@pytest.fixture
def bench(beside: None, tmp_path: Path, dense: Network) -> tuple[ModuleType, Any]:
    """The script, and what it opens: a checkpoint of the tiny model with texts of its own."""
    place = tmp_path / "llama"
    dense.model.save_pretrained(place)  # type: ignore[operator]
    save_tokenizer(place)
    words = torch.randint(0, 60, (2000,), generator=torch.Generator().manual_seed(2)).tolist()
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(f"w{i}" for i in words[k : k + 20]) for k in range(0, 2000, 20)))
    script = load("decoders")
    given = {"model": str(place), "data": None, "text": str(text), "eval_text": None, "device": "cpu", "blocks": 5}
    usual = {"seq": LENGTH, "tokens": 40 * LENGTH, "precision": "float32", "budgets": "0.8,0.5"}
    return script, script.open_bench(Namespace(**given, **usual))


def save_tokenizer(place: Path) -> None:
    """One token a word."""
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)} | {"[UNK]": 60, "[PAD]": 61}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]").save_pretrained(place)


@pytest.mark.filterwarnings("ignore")
def test_the_script_measures_what_it_says(bench: tuple[ModuleType, Any], dense: Network) -> None:
    script, own = bench
    assert len(own.judges) == 5
    assert {len(row["input_ids"]) for row in (*own.train.tokens, *own.judges.tokens)} == {LENGTH}
    # nothing that is judged on is calibrated on, and every seed draws its own
    assert len(own.train) == 200
    assert len(own.blocks(0)) == 40
    assert own.blocks(0).tokens == own.blocks(0).tokens != own.blocks(1).tokens
    ids = torch.tensor([row["input_ids"] for row in own.judges.tokens])
    with torch.no_grad():
        wanted = float(dense.model(input_ids=ids, labels=ids).loss)
    runs = [found for name in ("ours", "FLAP") for found in script.runs_of(own, [name], 0)]
    assert [(found["method"], found["macs"]) for found in runs] == [
        (name, share) for name in ("ours", "FLAP") for share in (0.8, 0.5)
    ]
    for found in runs:
        assert json.loads(json.dumps(found)) == found
        assert math.log(found["dense"]) == pytest.approx(wanted, rel=1e-5)
        assert math.log(found["perplexity"]) - math.log(found["dense"]) == pytest.approx(found["rise"], abs=1e-6)
        assert 0 < found["parameters_kept"] < 1
        assert found["macs"] - 0.1 < found["macs_kept"] <= found["macs"] + 1e-6
        assert found["seconds"] > 0
    lines = script.table({"runs": runs}, script.METHODS)
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["dense", "ours", "FLAP"]


def test_macs_that_are_counted_are_those_of_the_budget(bench: tuple[ModuleType, Any], dense: Network) -> None:
    script, own = bench
    counted = script.layer_macs(own, own.subject.model)
    assert counted == dense_macs_of(own.subject.sublayers)
    assert own.subject.model.config._attn_implementation == "sdpa"


def dense_macs_of(sublayers: Any) -> float:
    return total(Macs({sublayers[0].stack.name: float(LENGTH)}), sublayers)
