"""The families of the made-up models: whatever a family can say and no row of the table needs yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from faster_pruner.model.spec import Family, FollowerSpec, ProducerSpec, Stack, SublayerSpec, UnitSize
from made_up_modules import (
    EncoderDecoder,
    FusedLayer,
    GroupedLayer,
    NormedLayer,
    OneStack,
    ParallelLayer,
    RelativeLayer,
    Repeated,
    Towers,
    TransposedLayer,
)

_FUSED = (
    SublayerSpec(
        kind="attention",
        projection="out",
        producers=(ProducerSpec(module="wqkv", blocks=("equal", "equal", "equal")),),
        stream="norm1",
        unit_size=UnitSize(module="", attribute="sizes.head"),
        mixes_tokens=True,
    ),
    SublayerSpec(
        kind="ffn",
        projection="down",
        producers=(ProducerSpec(module="wi", blocks=("equal", "equal")),),
        stream="norm2",
    ),
)


def _attention(path: str, kind: str, *, shared_bias: bool, memory: bool = False) -> SublayerSpec:
    """`Attention` at a path of a layer."""
    followers = [FollowerSpec(module=path, name="count")]
    if shared_bias:
        followers.append(FollowerSpec(module=path, name="position_bias", axis=1, argument=True))
    return SublayerSpec(
        kind=kind,
        projection=f"{path}.out.dense",
        producers=(
            ProducerSpec(module=f"{path}.query"),
            ProducerSpec(module=f"{path}.key", source="memory" if memory else "stream"),
            ProducerSpec(module=f"{path}.value", source="memory" if memory else "stream"),
        ),
        stream=path,
        unit_size=UnitSize(module=path, attribute="count", counts="units"),
        mixes_tokens=True,
        followers=tuple(followers),
        branch=path,
        returns=2,
    )


_PLAIN_FFN = SublayerSpec(kind="ffn", projection="down", producers=(ProducerSpec(module="up"),), stream="up")
_SELF = _attention("attention", "attention", shared_bias=True)
_CROSS = _attention("cross", "cross-attention", shared_bias=False, memory=True)


def _grouped(*, normed: bool) -> tuple[SublayerSpec, ...]:
    """A unit is a key with its queries."""
    join = "normed" if normed else "add"
    attention = SublayerSpec(
        kind="attention",
        unit="group",
        projection="attention.o",
        producers=(
            ProducerSpec(module="attention.q", blocks=("columns",)),
            ProducerSpec(module="attention.k"),
            ProducerSpec(module="attention.v"),
        ),
        stream="norm1",
        join=join,
        norm="after1" if normed else "",
        unit_size=UnitSize(module="attention", attribute="groups", counts="units"),
        mixes_tokens=True,
        followers=(
            FollowerSpec(module="attention", name="queries"),
            FollowerSpec(module="attention", name="groups"),
        ),
        branch="attention",
    )
    ffn = SublayerSpec(
        kind="ffn",
        projection="down",
        producers=(ProducerSpec(module="gate"), ProducerSpec(module="up")),
        stream="norm2",
        join=join,
        norm="after2" if normed else "",
    )
    return attention, ffn


_PARALLEL = (
    SublayerSpec(
        kind="attention",
        projection="out",
        producers=(ProducerSpec(module="wqkv", blocks=("columns", "fixed", "fixed")),),
        stream="norm",
        join="parallel",
        unit_size=UnitSize(module="", attribute="head_size"),
        mixes_tokens=True,
    ),
    SublayerSpec(kind="ffn", projection="down", producers=(ProducerSpec(module="up"),), stream="norm", join="parallel"),
)

_TRANSPOSED = (
    SublayerSpec(
        kind="attention",
        projection="out",
        producers=(ProducerSpec(module="wqkv", blocks=("equal", "equal", "equal"), transposed=True),),
        stream="norm1",
        unit_size=UnitSize(module="", attribute="head_size"),
        mixes_tokens=True,
        transposed=True,
    ),
    SublayerSpec(
        kind="ffn",
        projection="down",
        producers=(ProducerSpec(module="up", transposed=True),),
        stream="norm2",
        transposed=True,
    ),
)

_RELATIVE = (
    SublayerSpec(
        kind="attention",
        projection="out",
        producers=(
            ProducerSpec(module="query"),
            ProducerSpec(module="key", source="several"),
            ProducerSpec(module="value"),
        ),
        stream="",
        unit_size=UnitSize(module="", attribute="count", counts="units"),
        mixes_tokens=True,
        followers=(
            FollowerSpec(module="", name="count"),
            FollowerSpec(module="", name="table", axis=1),
            FollowerSpec(module="", name="slopes", axis=0),
        ),
        least=1,
    ),
    _PLAIN_FFN,
)


@dataclass(frozen=True)
class MadeUp:
    """A made-up model and its family.

    Attributes:
        build: makes the model, given a config or nothing.
        family: of it.
        joined: by stack and kind, the module inside a layer that is called with the stream that the branch has joined;
            of branches in parallel, only the last one's.
    """

    build: Callable[..., nn.Module]
    family: Family
    joined: Mapping[str, str]


def _one_stack(
    layer: type[nn.Module], sublayers: tuple[SublayerSpec, ...], joined: Mapping[str, str], *, causal: bool = False
) -> MadeUp:
    """Layers of one kind."""
    family = Family(stacks=(Stack(layers="layers", sublayers=sublayers),))
    build = partial(OneStack, layer=layer, causal=causal)
    return MadeUp(build, family, {f"layers.{kind}": module for kind, module in joined.items()})


_TOWERS = MadeUp(
    Towers,
    Family(
        stacks=(
            Stack(name="text", layers="text.layers", sublayers=_FUSED),
            Stack(name="image", layers="image", sublayers=_FUSED, mask=""),
        )
    ),
    {
        "text.attention": "norm2",
        "text.ffn": "end",
        "image.attention": "norm2",
        "image.ffn": "end",
    },
)
_ENCODER_DECODER = MadeUp(
    EncoderDecoder,
    Family(
        stacks=(
            Stack(name="encoder", layers="encoder", sublayers=(_SELF, _PLAIN_FFN)),
            Stack(
                name="decoder",
                layers="decoder",
                sublayers=(_SELF, _CROSS, _PLAIN_FFN),
                mask="decoder_attention_mask",
                memory="encoder",
            ),
        )
    ),
    {
        "encoder.attention": "norm1",
        "encoder.ffn": "norm3",
        "decoder.attention": "norm1",
        "decoder.cross-attention": "norm2",
        "decoder.ffn": "norm3",
    },
)
# One layer, run again and again, as ALBERT's is.
_REPEATED = MadeUp(
    partial(Repeated, layer=FusedLayer),
    Family(stacks=(Stack(layers="layers", sublayers=_FUSED, calls=3),)),
    {"layers.attention": "norm2", "layers.ffn": "end"},
)
_AFTER_EACH = {"attention": "norm2", "ffn": "end"}

MADE_UP: dict[str, MadeUp] = {
    "towers": _TOWERS,
    "encoder-decoder": _ENCODER_DECODER,
    "grouped": _one_stack(GroupedLayer, _grouped(normed=False), _AFTER_EACH, causal=True),
    "repeated": _REPEATED,
    "normed": _one_stack(NormedLayer, _grouped(normed=True), {}, causal=True),
    "parallel": _one_stack(ParallelLayer, _PARALLEL, {"ffn": "end"}, causal=True),
    "transposed": _one_stack(TransposedLayer, _TRANSPOSED, _AFTER_EACH, causal=True),
    "relative": _one_stack(RelativeLayer, _RELATIVE, {"attention": "norm1", "ffn": "norm2"}),
}
