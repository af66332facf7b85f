"""Made-up models that do whatever no row of the family table does yet (see `made_up`).

Every layer calls a module on the stream right after each branch has joined it: there a test sees what was really added.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu
from transformers.pytorch_utils import Conv1D

WIDTH, HEAD, HEADS, NEURONS, VOCABULARY, POSITIONS = 12, 4, 3, 10, 30, 8
_DISTANCES = 2 * POSITIONS - 1
_FORBIDDEN = torch.finfo(torch.float32).min


def heads_of(x: Tensor, count: int = -1) -> Tensor:
    """[B, S, H * HEAD] -> [B, H, S, HEAD]."""
    return x.unflatten(-1, (count, HEAD)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """[B, S, H * HEAD] of q [B, H, S, HEAD], k and v [B, H or 1, T, HEAD], bias [B or 1, H or 1, S or 1, T]."""
    scores = q @ k.mT / HEAD**0.5 + bias
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def padding_bias(mask: Tensor) -> Tensor:
    """[B, 1, 1, S]: what is added to scores so that nobody looks at padding."""
    return (1.0 - mask[:, None, None, :].float()) * _FORBIDDEN


def causal_bias(mask: Tensor) -> Tensor:
    """[B, 1, S, S]: nobody looks at later tokens, nor at padding."""
    ahead = torch.ones(mask.shape[1], mask.shape[1]).triu(1) * _FORBIDDEN
    return torch.minimum(padding_bias(mask), ahead)


def distances(length: int) -> Tensor:
    """[S, S]: how far each token is from each other one, as an index."""
    places = torch.arange(length)
    return places[None, :] - places[:, None] + POSITIONS - 1


class Model(nn.Module):
    """What all of them have in common; generated code hands a config on, so one is taken and kept."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def returns(self, hidden: Tensor) -> SimpleNamespace:
        """Logits [B, 3] of the first token, and the hidden states [B, S, WIDTH]."""
        return SimpleNamespace(logits=self.head(hidden[:, 0]), hidden=hidden)


class OneStack(Model):
    """Layers of one kind after an embedding. They are given x and what to add to the scores."""

    def __init__(self, config: Any = None, *, layer: type[nn.Module], causal: bool = False) -> None:
        super().__init__(config)
        self.causal = causal
        self.layers = nn.ModuleList([layer(), layer()])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x, bias = self.embedding(input_ids), (causal_bias if self.causal else padding_bias)(attention_mask)
        for layer in self.layers:
            x = layer(x, bias)
        return self.returns(x)


class Repeated(OneStack):
    """One layer that runs three times."""

    def __init__(self, config: Any = None, *, layer: type[nn.Module]) -> None:
        super().__init__(config, layer=layer)
        self.layers = self.layers[:1]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        x, bias = self.embedding(input_ids), padding_bias(attention_mask)
        for _ in range(3):
            x = self.layers[0](x, bias)
        return self.returns(x)


class FusedLayer(nn.Module):
    """Query, key and value in one matrix, gate and up in another; both branches can run without a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = SimpleNamespace(head=HEAD)
        self.norm1, self.norm2, self.end = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Identity()
        self.wqkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wi, self.down = nn.Linear(WIDTH, 2 * NEURONS, bias=False), nn.Linear(NEURONS, WIDTH, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (heads_of(each, each.shape[-1] // HEAD) for each in self.wqkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.out(attend(q, k, v, bias))
        gate, up = self.wi(self.norm2(x)).chunk(2, dim=-1)
        return self.end(x + self.down(gelu(gate) * up))


class Towers(Model):
    """A text, and an image's patches that no mask tells apart. The image runs first; the family lists it last."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.patches = nn.Linear(5, WIDTH)
        self.text = nn.ModuleDict({"layers": nn.ModuleList([FusedLayer(), FusedLayer()])})
        self.image = nn.ModuleList([FusedLayer()])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> SimpleNamespace:
        image = self.patches(pixels)
        for layer in self.image:
            image = layer(image, torch.zeros(1))
        x = self.embedding(input_ids)
        for layer in self.text["layers"]:
            x = layer(x, padding_bias(attention_mask))
        return self.returns(x + image.mean(dim=1, keepdim=True))


class Attention(nn.Module):
    """Separate matrices, and a count of heads that may not be 0; keys and values may be those of another stack."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.out = HEADS, nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(
        self, x: Tensor, position_bias: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """(y [B, S, WIDTH], None) of x [B, S, WIDTH], position_bias [B or 1, H, S, T], memory [B, T, WIDTH]."""
        other = x if memory is None else memory
        projected = (self.query(x), self.key(other), self.value(other))
        q, k, v = (heads_of(each, self.count) for each in projected)
        bias = torch.zeros(1) if position_bias is None else position_bias
        return self.out["dense"](attend(q, k, v, bias)), None


class CodingLayer(nn.Module):
    """Self-attention, attention to another stack where there is one, FFN; each normalised after it was added."""

    def __init__(self, *, decodes: bool) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(), nn.LayerNorm(WIDTH)
        if decodes:
            self.cross, self.norm2 = Attention(), nn.LayerNorm(WIDTH)
        self.up, self.down, self.norm3 = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        if memory is None:
            x = self.norm1(x + self.attention(x, bias)[0])
        else:
            x = self.norm1(x + self.attention(x, position_bias=bias)[0])
            x = self.norm2(x + self.cross(x, hidden, memory=memory)[0])
        return self.norm3(x + self.down(gelu(self.up(x))))


class EncoderDecoder(Model):
    """Each stack makes one position bias with an entry per head, which all of its layers are given."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.encoder = nn.ModuleList([CodingLayer(decodes=False) for _ in range(2)])
        self.decoder = nn.ModuleList([CodingLayer(decodes=True) for _ in range(2)])
        self.encoder_bias, self.decoder_bias = (nn.Embedding(_DISTANCES, HEADS) for _ in range(2))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, decoder_attention_mask: Tensor
    ) -> SimpleNamespace:
        memory, hidden = self.embedding(input_ids), padding_bias(attention_mask)
        bias = self.encoder_bias(distances(memory.shape[1])).permute(2, 0, 1)[None] + hidden
        for layer in self.encoder:
            memory = layer(memory, bias)
        x = self.embedding(decoder_input_ids)
        bias = self.decoder_bias(distances(x.shape[1])).permute(2, 0, 1)[None] + causal_bias(decoder_attention_mask)
        for layer in self.decoder:
            x = layer(x, bias, memory, hidden)
        return self.returns(x)


class GroupedAttention(nn.Module):
    """Two query heads share a key and a value; no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.groups = 2 * HEADS, HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, size * HEAD, bias=False) for size in (2 * HEADS, HEADS, HEADS))
        self.o = nn.Linear(2 * HEADS * HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q = heads_of(self.q(x), self.queries)
        k, v = (heads_of(each, self.groups).repeat_interleave(2, dim=1) for each in (self.k(x), self.v(x)))
        return self.o(attend(q, k, v, bias))


class GroupedLayer(nn.Module):
    """Grouped queries, then a gated FFN in three matrices. `normed`: each branch is normalised before it is added."""

    def __init__(self, *, normed: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.end = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH), nn.Identity()
        self.after1, self.after2 = (nn.RMSNorm(WIDTH) if normed else nn.Identity() for _ in range(2))
        self.attention = GroupedAttention()
        self.gate, self.up = (nn.Linear(WIDTH, NEURONS, bias=False) for _ in range(2))
        self.down = nn.Linear(NEURONS, WIDTH, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.after1(self.attention(self.norm1(x), bias))
        inside = self.norm2(x)
        return self.end(x + self.after2(self.down(silu(self.gate(inside)) * self.up(inside))))


class NormedLayer(GroupedLayer):
    """A grouped layer that normalises its branches."""

    def __init__(self) -> None:
        super().__init__(normed=True)


class ParallelLayer(nn.Module):
    """Attention and FFN read one x and are added in place; all heads share a key and a value, which stay."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.end, self.head_size = nn.LayerNorm(WIDTH), nn.Identity(), HEAD
        self.wqkv, self.out = nn.Linear(WIDTH, WIDTH + 2 * HEAD), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        inside = self.norm(x)
        q, k, v = self._split(self.wqkv(inside))
        attended = self.out(attend(q, k, v, bias))
        attended += x
        both = self.down(gelu(self.up(inside)))
        both += attended
        return self.end(both)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All heads of q, the one of k, the one of v."""
        if not qkv.shape[-1]:
            return (heads_of(qkv, 0),) * 3
        q, k, v = qkv.split([qkv.shape[-1] - 2 * HEAD, HEAD, HEAD], dim=-1)
        return heads_of(q), heads_of(k), heads_of(v)


class TransposedLayer(nn.Module):
    """GPT-2's matrices, stored the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.end, self.head_size = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.Identity(), HEAD
        self.wqkv, self.out = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.up, self.down = Conv1D(NEURONS, WIDTH), Conv1D(WIDTH, NEURONS)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (heads_of(each, each.shape[-1] // HEAD) for each in self.wqkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.out(attend(q, k, v, bias))
        return self.end(x + self.down(gelu(self.up(self.norm2(x)))))


class RelativeLayer(nn.Module):
    """DeBERTa's double use of the key matrix, ALiBi's slopes and T5's table: tensors with entries per head."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.norm1, self.norm2 = HEADS, nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.relative, self.table = nn.Embedding(_DISTANCES, WIDTH), nn.Parameter(torch.empty(_DISTANCES, 2 * HEADS))
        self.register_buffer("slopes", torch.tensor([0.5, -0.25, 0.125]), persistent=False)
        self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        far = distances(x.shape[1])
        q, k, v = (heads_of(each, self.count) for each in (self.query(x), self.key(x), self.value(x)))
        by_distance = q @ heads_of(self.key(self.relative.weight[None]), self.count).mT
        bias = bias + by_distance.gather(-1, far.expand(*q.shape[:-1], -1)) + self.slopes[:, None, None] * far
        # two entries of the table belong to each head
        bias = bias + self.table[far].unflatten(-1, (self.count, 2)).sum(dim=-1).permute(2, 0, 1)
        x = self.norm1(x + self.out(attend(q, k, v, bias)))
        return self.norm2(x + self.down(gelu(self.up(x))))
