"""The family table: one literal per `model_type`."""

from __future__ import annotations

from faster_pruner.errors import UnsupportedModelError
from faster_pruner.families.spec import FamilySpec, Follower, SublayerSpec, UnitSize

_BERT_SUBLAYERS = (
    SublayerSpec(
        kind="attention",
        output="attention.output.dense",
        producers=("attention.self.query", "attention.self.key", "attention.self.value"),
        residual="attention.self",
        branch="attention.self",
        unit_size=UnitSize(module="attention.self", attribute="attention_head_size"),
        followers=(
            Follower(module="attention.self", attribute="num_attention_heads", counts="units"),
            Follower(module="attention.self", attribute="all_head_size", counts="columns"),
        ),
        config_key="num_attention_heads",
    ),
    SublayerSpec(
        kind="ffn",
        output="output.dense",
        producers=("intermediate.dense",),
        residual="intermediate",
        config_key="intermediate_size",
        stock=True,
    ),
)

FAMILIES: dict[str, FamilySpec] = {
    "bert": FamilySpec(model_type="bert", layers="encoder.layer", sublayers=_BERT_SUBLAYERS),
    "roberta": FamilySpec(model_type="roberta", layers="encoder.layer", sublayers=_BERT_SUBLAYERS),
    "distilbert": FamilySpec(
        model_type="distilbert",
        layers="transformer.layer",
        sublayers=(
            SublayerSpec(
                kind="attention",
                output="attention.out_lin",
                producers=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
                residual="attention",
                branch="attention",
                unit_size=UnitSize(module="attention", attribute="attention_head_size"),
                followers=(
                    Follower(module="attention", attribute="n_heads", counts="units"),
                    Follower(module="attention", attribute="dim", counts="columns"),
                ),
                config_key="n_heads",
            ),
            SublayerSpec(
                kind="ffn",
                output="ffn.lin2",
                producers=("ffn.lin1",),
                residual="ffn",
                config_key="hidden_dim",
                stock=True,
            ),
        ),
    ),
}


def family_of(model_type: str) -> FamilySpec:
    """The row of `model_type`. Raises UnsupportedModelError, naming the supported ones."""
    family = FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is not supported; supported are: {', '.join(sorted(FAMILIES))}"
        )
    return family
