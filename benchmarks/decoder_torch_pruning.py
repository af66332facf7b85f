"""torch-pruning 1.6.1 (pip install torch-pruning) on models built like Llama, as its example `prune_llm.py` does it.

Group magnitude (p = 2, mean over the group) or Taylor importance, ranked inside each layer; `num_heads` of queries,
keys and values; whole heads, no head dimensions; the residual stream stays as it is. With grouped-query attention it
removes query heads only, as many from every group, and leaves keys and values alone. All layers lose one share, heads
rounded down to whole ones per group, as the other baselines of `decoder_baselines.py` do.

Four things had to be known:
* its graph never ends on a rotary embedding (the halves that are exchanged shift indices for ever), so the graph is
  built with an embedding that rotates nothing;
* groups of channels are kept in default arguments from one pruner to the next;
* heads are removed only where their layer has a ratio above zero, too;
* the last query head but one of a group cannot go: with one left it takes the layer for one without groups, wants to
  remove all keys, and gives up. A model with two to a group loses neurons only.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from decoder_baselines import SLACK
from faster_pruner.costs.cost import Macs
from faster_pruner.errors import BudgetError
from faster_pruner.method.calibration_set import CalibrationSet
from faster_pruner.model.network import Network
from faster_pruner.model.passes import training

_ROTARY = "apply_rotary_pos_emb"
# Of each group.
_FEWEST_QUERIES = 2


def pruned(dense: Network, data: CalibrationSet, most: float, gradients: dict[str, Tensor] | None = None) -> nn.Module:
    """A smaller copy that costs at most `most` MACs; Taylor importance with gradients."""
    import torch_pruning as tp

    model: Any = copy.deepcopy(dense.model)
    for name, gradient in (gradients or {}).items():
        model.get_parameter(name).grad = gradient.clone()
    neurons, queries = _gone(dense, data, most)
    layers, config = model.base_model.layers, model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    ratios, counts = dict[nn.Module, float](), dict[nn.Module, int]()
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        # half a unit less, as the counts are rounded up
        ratios |= dict.fromkeys((mlp.gate_proj, mlp.up_proj), (neurons - 0.5) / mlp.up_proj.out_features)
        counts |= {attention.q_proj: heads, attention.k_proj: groups, attention.v_proj: groups}
        if queries:
            ratios |= dict.fromkeys((attention.q_proj, attention.k_proj, attention.v_proj), 0.5)
    importance = tp.importance.GroupTaylorImportance if gradients else tp.importance.GroupMagnitudeImportance
    with warnings.catch_warnings(), _nothing_rotated(layers[0].self_attn):
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MetaPruner(
            model,
            {"input_ids": data.batches[0].inputs["input_ids"][:1, :8]},
            importance=importance() if gradients else importance(p=2, group_reduction="mean"),
            global_pruning=False,
            pruning_ratio=0.0,
            pruning_ratio_dict={module: ratio for module, ratio in ratios.items() if ratio > 0},
            num_heads=counts,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=max(0.0, (queries * groups - 0.5) / heads),
            ignored_layers=[model.get_output_embeddings()],
            in_channel_groups={},
            out_channel_groups={},
            output_transform=lambda output: output.logits.sum(),
        )
        pruner.step()
    model.zero_grad()
    for layer in layers:
        attention = layer.self_attn
        attention.num_key_value_groups = attention.q_proj.out_features // attention.k_proj.out_features
    return model.eval()


def loss_gradients(dense: Network, data: CalibrationSet) -> dict[str, Tensor]:
    """Gradient of the loss of the next tokens, summed over the calibration set, by name of parameter."""
    model: Any = dense.model
    with training(model):
        for batch in data.batches:
            (model(**batch.inputs, labels=batch.inputs["input_ids"]).loss * batch.rows.numel()).backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def _gone(dense: Network, data: CalibrationSet, most: float) -> tuple[int, int]:
    """Neurons of each layer, and query heads of each group, to remove (as `decoder_baselines.same_share`)."""
    cost, config = Macs(data.lengths), getattr(dense.model, "config", None)
    assert config is not None
    per_group = config.num_attention_heads // config.num_key_value_heads
    attention = [s for s in dense.sublayers if s.spec.mixes_tokens]
    ffn = [s for s in dense.sublayers if not s.spec.mixes_tokens]
    neurons, size = ffn[0].units, attention[0].unit_size // per_group

    whole = {s.name: float(cost.of(s, torch.tensor([s.units]))[0]) for s in dense.sublayers}
    lost = max(0, min(int((1 - Fraction(most / sum(whole.values()))) * per_group), per_group - _FEWEST_QUERIES))
    left = most * (1 + SLACK)
    for s in attention:
        length = data.lengths[s.stack.name]
        # rows of the queries, columns of the output, and both products with the attention matrix
        left -= whole[s.name] - s.units * lost * length * (2 * size * s.width + 2 * size * length)
    kept = min(neurons, int(left / sum(whole[s.name] for s in ffn) * neurons))
    if kept < 1:
        raise BudgetError("torch-pruning leaves every layer a neuron, all keys and two queries to each: ask for more")
    return neurons - kept, lost


@contextmanager
def _nothing_rotated(attention: nn.Module) -> Generator[None]:
    """A model's rotary embedding hands on queries and keys as they are; it has no weights that could be pruned."""
    module: Any = sys.modules[type(attention).__module__]
    before = getattr(module, _ROTARY)
    setattr(module, _ROTARY, lambda q, k, *_, **__: (q, k))
    try:
        yield
    finally:
        setattr(module, _ROTARY, before)
