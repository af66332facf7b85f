"""The family table: one literal per `model_type`."""

from __future__ import annotations

from typing import Any

from faster_pruner.model.spec import Family, FollowerSpec, ProducerSpec, Stack, SublayerSpec, UnitSize

_BERT = Family(
    stacks=(
        Stack(
            layers="encoder.layer",
            sublayers=(
                SublayerSpec(
                    kind="attention",
                    unit="head",
                    projection="attention.output.dense",
                    producers=(
                        ProducerSpec(module="attention.self.query"),
                        ProducerSpec(module="attention.self.key"),
                        ProducerSpec(module="attention.self.value"),
                    ),
                    stream="attention.self",
                    unit_size=UnitSize(module="attention.self", attribute="attention_head_size"),
                    mixes_tokens=True,
                    followers=(
                        FollowerSpec(module="attention.self", name="num_attention_heads"),
                        FollowerSpec(module="attention.self", name="all_head_size"),
                    ),
                    branch="attention.self",
                    returns=2,
                    config=("num_attention_heads",),
                ),
                SublayerSpec(
                    kind="ffn",
                    unit="neuron",
                    projection="output.dense",
                    producers=(ProducerSpec(module="intermediate.dense"),),
                    stream="intermediate",
                    config=("intermediate_size",),
                    stock=True,
                    rounded=True,
                    buckets=8,
                ),
            ),
        ),
    ),
)

_DISTILBERT = Family(
    stacks=(
        Stack(
            layers="transformer.layer",
            sublayers=(
                SublayerSpec(
                    kind="attention",
                    unit="head",
                    projection="attention.out_lin",
                    producers=(
                        ProducerSpec(module="attention.q_lin"),
                        ProducerSpec(module="attention.k_lin"),
                        ProducerSpec(module="attention.v_lin"),
                    ),
                    stream="attention",
                    unit_size=UnitSize(module="attention", attribute="attention_head_size"),
                    mixes_tokens=True,
                    followers=(
                        FollowerSpec(module="attention", name="n_heads"),
                        FollowerSpec(module="attention", name="dim"),
                    ),
                    branch="attention",
                    returns=2,
                    config=("n_heads",),
                ),
                SublayerSpec(
                    kind="ffn",
                    unit="neuron",
                    projection="ffn.lin2",
                    producers=(ProducerSpec(module="ffn.lin1"),),
                    stream="ffn",
                    config=("hidden_dim",),
                    stock=True,
                    rounded=True,
                    buckets=8,
                ),
            ),
        ),
    ),
)

FAMILIES: dict[str, Family] = {"bert": _BERT, "roberta": _BERT, "distilbert": _DISTILBERT}


def family_of(config: Any) -> Family | None:
    """The row for a model's config; None where there is none."""
    return FAMILIES.get(str(getattr(config, "model_type", "")))
