"""How a branch joins the residual stream, found from the values of one forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from faster_pruner.model.detection.watching import Call, Trace
from faster_pruner.model.spec import Join

# Largest difference that rounding explains, of values of magnitude 1.
_ROUNDING = 1e-5
# A branch adds at least this many times as much.
_CLEAR = 50.0
# How many modules (a normalisation, a scale) a branch may go through before it joins.
_STEPS = 3
# How many calls after a layer may still be the ones that read what its last branch has joined.
_AFTER = 6


@dataclass(frozen=True)
class Joined:
    """Where and how a branch joins.

    Attributes:
        stream: path inside the layer of the module that reads the stream.
        join: as in a family.
        norm: path inside the layer of the module that the branch goes through first, if any.
    """

    stream: str
    join: Join
    norm: str = ""


def find_joins(trace: Trace, layer: str, projections: list[str]) -> dict[str, Joined]:
    """How the branches of a layer that end in `projections` join; those that join nothing are not in it."""
    calls = _around(trace, layer)
    found: dict[str, Joined] = {}
    for path in projections:
        call = trace.one(path)
        joined = None if call is None else _alone(calls, layer, call)
        if joined is not None:
            found[path] = joined
    rest = [path for path in projections if path not in found]
    for path, joined in _together(trace, calls, layer, rest).items():
        found[path] = joined
    return found


def _around(trace: Trace, layer: str) -> list[Call]:
    """Calls in a layer, and the first ones after it."""
    calls, own = trace.inside(layer), trace.one(layer)
    after = [c for c in trace.calls if own is not None and c.began > own.ended]
    return [*calls, *after[:_AFTER]]


def _alone(calls: list[Call], layer: str, projection: Call) -> Joined | None:
    """How a branch joins by itself."""
    scaled: Joined | None = None
    for delta, norm in _deltas(calls, projection):
        for s, stream in _streams(calls, layer, projection):
            for t in _later(calls, projection, s):
                if _close(t - s, delta, t):
                    inside = norm.removeprefix(layer).removeprefix(".")
                    return Joined(stream, "normed", inside) if norm else Joined(stream, "add")
                if scaled is None and _proportional(t - s, delta, t):
                    scaled = Joined(stream, "normed")
    return scaled


def _together(trace: Trace, calls: list[Call], layer: str, paths: list[str]) -> dict[str, Joined]:
    """Branches that join one stream together."""
    ends = [call for path in paths if (call := trace.one(path)) is not None and call.value is not None]
    for i, one in enumerate(ends):
        for other in ends[i + 1 :]:
            assert one.value is not None
            assert other.value is not None
            if one.value.shape != other.value.shape:
                continue
            first, last = sorted((one, other), key=lambda c: c.began)
            for s, stream in _streams(calls, layer, first):
                for t in _later(calls, last, s):
                    if _close(t - s, one.value + other.value, t):
                        return {one.path: Joined(stream, "parallel"), other.path: Joined(stream, "parallel")}
    return {}


def _deltas(calls: list[Call], projection: Call) -> Iterator[tuple[Tensor, str]]:
    """What may be added: what the projection puts out, or what modules make of it; with the first one's path."""
    if projection.value is None:
        return
    yield projection.value, ""
    ahead = [(projection.value, "")]
    for _ in range(_STEPS):
        further = []
        for value, norm in ahead:
            for call in calls:
                if call.began > projection.ended and call.source is not None and call.value is not None:
                    own = call.value.shape == value.shape and not torch.equal(call.value, value)
                    if own and call.source.shape == value.shape and torch.equal(call.source, value):
                        further.append((call.value, norm or call.path))
        yield from further
        ahead = further


def _streams(calls: list[Call], layer: str, projection: Call) -> Iterator[tuple[Tensor, str]]:
    """What may be the stream, with the path inside the layer of a module that reads it; outer modules first."""
    early = [c for c in calls if c.began < projection.began and c.source is not None]
    early = [c for c in early if c.path == layer or c.path.startswith(layer + ".")]
    for call in sorted(early, key=lambda c: (c.path.count("."), c.began)):
        assert call.source is not None
        if (
            projection.value is not None
            and call.source.shape == projection.value.shape
            and call.path != projection.path
        ):
            yield call.source, call.path.removeprefix(layer).removeprefix(".")


def _later(calls: list[Call], projection: Call, s: Tensor) -> Iterator[Tensor]:
    """What may be the stream after the branch has joined."""
    for call in calls:
        for value, then in ((call.source, call.began), (call.value, call.ended)):
            alike = value is not None and value.numel() == s.numel() and value.shape[-1:] == s.shape[-1:]
            if then > projection.ended and value is not None and alike:
                yield value.reshape(s.shape)


def _close(difference: Tensor, delta: Tensor, t: Tensor) -> bool:
    """Whether what was added is `delta`."""
    if difference.shape != delta.shape:
        return False
    scale = _ROUNDING * max(1e-3, float(t.abs().max()), float(delta.abs().max()))
    return float(delta.abs().max()) > _CLEAR * scale and float((difference - delta).abs().max()) <= scale


def _proportional(difference: Tensor, delta: Tensor, t: Tensor) -> bool:
    """Whether what was added is a multiple of `delta`."""
    if difference.shape != delta.shape:
        return False
    ratio = float((difference * delta).sum() / delta.square().sum().clamp(min=1e-12))
    return abs(ratio) > 1e-3 and abs(ratio - 1) > 1e-4 and _close(difference, ratio * delta, t)
