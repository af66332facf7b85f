"""Which columns of which projection a feature, an entry of a tensor or of an argument has a part in.

NaN goes wherever there is a path and stops nowhere. It is put in one place per row of a batch, so that one short
forward answers many questions. Nothing here goes by a name or a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from faster_pruner.errors import UnsupportedModelError
from faster_pruner.model.detection.watching import Inputs, Stopped, hooked, repeated, run, stop
from faster_pruner.model.shrink import Follower, KeptEntries

# Features that are looked at per module, and rows and tokens per forward.
_SAMPLES = 24
_ROWS, _TOKENS = 192, 40_000
# Dimensions of a tensor that holds several matrices.
_STACKED = 3


@dataclass(frozen=True)
class Influence:
    """What features of one module do to the input of one projection.

    Attributes:
        features: [E] those that were looked at.
        columns: [E, n] bool: which columns of the projection's input they reach.
        mixes: whether one token's feature reaches other tokens.
    """

    features: list[int]
    columns: Tensor
    mixes: bool


def outputs_of(module: nn.Module) -> int:
    """Output features of a module that multiplies by a matrix."""
    weight: Any = module.weight
    return int(weight.shape[1 if is_transposed(module) else 0])


def inputs_of(module: nn.Module) -> int:
    """Input features of a module that multiplies by a matrix."""
    weight: Any = module.weight
    return int(weight.shape[0 if is_transposed(module) else 1])


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored as [inputs, outputs]."""
    return not isinstance(module, nn.Linear)


def is_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix and does nothing else."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or list(module.children()):
        return False
    return isinstance(module, nn.Linear | Conv1D)


def stacked(module: nn.Module) -> Iterator[tuple[str, int]]:
    """(path, how many) of what holds several matrices in one tensor, inside a module: the experts of a mixture."""
    for path, inside in module.named_modules():
        counts = {p.shape[0] for p in inside.parameters(recurse=False) if p.ndim == _STACKED}
        if len(counts) == 1 and not isinstance(inside, nn.Conv1d | nn.ConvTranspose1d):
            yield path, counts.pop()


def samples(whole: int) -> list[int]:
    """Features to look at: all of them where they are few; else both sides of where blocks and units begin."""
    if whole <= 2 * _SAMPLES:
        return list(range(whole))
    generator = torch.Generator().manual_seed(whole)
    chosen = {0, 1, 2, whole - 1, whole - 2}
    for parts in (2, 3):
        chosen |= {whole * i // parts + d for i in range(1, parts) for d in (-1, 0, 1)}
    while len(chosen) < _SAMPLES:
        chosen.add(int(torch.randint(whole, (1,), generator=generator)))
    return sorted(chosen)


def influences(
    model: nn.Module, inputs: Inputs, layer: str, matrices: Sequence[str]
) -> dict[tuple[str, str], Influence]:
    """(producer, projection) -> what the one does to the other, of all pairs of matrices of a layer.

    Raises:
        UnsupportedModelError: the model cannot run on copies of one row.
    """
    _check_copies(model, inputs, layer)
    wanted = [(path, f, only) for path in matrices for f, only in _questions(model, path)]
    answers: dict[str, list[Tensor]] = {path: [] for path in matrices}
    mixed: dict[str, list[Tensor]] = {path: [] for path in matrices}
    at_once = max(1, min(_ROWS, _TOKENS // max(1, _tokens_per_row(model, inputs, layer))))
    for start in range(0, len(wanted), at_once):
        part = wanted[start : start + at_once]
        seen = _ask(model, inputs, layer, matrices, part)
        for path in matrices:
            none = torch.zeros(len(part), inputs_of(model.get_submodule(path)), dtype=torch.bool)
            reached, others = seen.get(path, (none, none.any(dim=1)))
            answers[path].append(reached)
            mixed[path].append(others)
    found: dict[tuple[str, str], Influence] = {}
    for projection in matrices:
        reached, others = torch.cat(answers[projection]), torch.cat(mixed[projection])
        for producer in matrices:
            rows = [i for i, (path, _, only) in enumerate(wanted) if path == producer and not only]
            single = [i for i, (path, _, only) in enumerate(wanted) if path == producer and only]
            features = [wanted[i][1] for i in rows]
            found[producer, projection] = Influence(features, reached[rows], bool(others[single].any()))
    return found


def _tokens_per_row(model: nn.Module, inputs: Inputs, layer: str) -> int:
    """Tokens that a layer is given of one row."""
    seen: list[int] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        seen.append(1 if first is None else first[..., 0].numel())
        raise Stopped

    with hooked(ExitStack()) as stack:
        hook = model.get_submodule(layer).register_forward_pre_hook(look, with_kwargs=True)
        stack.callback(hook.remove)
        run(model, repeated(inputs, 1))
    return next(iter(seen), 1)


def _check_copies(model: nn.Module, inputs: Inputs, layer: str) -> None:
    """Whether the model runs on copies of the first row: inputs that are packed together cannot be taken apart."""
    with hooked(ExitStack()) as stack:
        stack.callback(model.get_submodule(layer).register_forward_hook(stop).remove)
        try:
            run(model, repeated(inputs, 2))
        except Exception as error:  # whatever a model's code does with inputs that do not fit together
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot run on copies of the first row of its inputs, "
                "models whose inputs have one entry for each row are supported; give it such inputs"
            ) from error


def _questions(model: nn.Module, path: str) -> list[tuple[int, bool]]:
    """(feature, whether of the first token only) to look at, of one module."""
    whole = outputs_of(model.get_submodule(path))
    return [*((f, False) for f in samples(whole)), (0, True), (whole - 1, True)]


def _ask(
    model: nn.Module, inputs: Inputs, layer: str, matrices: Sequence[str], wanted: list[tuple[str, int, bool]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """By projection: [rows, n] columns reached, and [rows] whether other tokens than the first are reached."""
    rows = len(wanted)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def poison(path: str) -> Callable[..., Any]:
        own = [(row, f, only) for row, (p, f, only) in enumerate(wanted) if p == path]

        def hook(module: nn.Module, args: Any, y: Tensor) -> Tensor:
            second = _rows_come_second(y, rows)
            if (y.shape[0] % rows and not second) or y.shape[-1] != outputs_of(module):
                return y
            first = y.transpose(0, 1) if second else y
            flat = first.clone().reshape(rows, -1, y.shape[-1])
            for row, f, only in own:
                flat[row, : 1 if only else None, f] = torch.nan
            flat = flat.reshape(first.shape)
            return flat.transpose(0, 1) if second else flat

        return hook

    def look(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].transpose(0, 1) if _rows_come_second(args[0], rows) else args[0]
            if x.shape[0] % rows:
                return
            flat = x.reshape(rows, -1, x.shape[-1]).isnan()
            reached, others = flat.any(dim=1).cpu(), flat[:, 1:].flatten(1).any(dim=1).cpu()
            if path in seen:
                reached, others = reached | seen[path][0], others | seen[path][1]
            seen[path] = reached, others

        return hook

    with hooked(ExitStack()) as stack:
        for path in matrices:
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(look(path)).remove)
            stack.callback(module.register_forward_hook(poison(path)).remove)
        stack.callback(model.get_submodule(layer).register_forward_hook(stop).remove)
        run(model, repeated(inputs, rows))
    return seen


def _rows_come_second(x: Tensor, rows: int) -> bool:
    """Whether tokens come before rows: [S, B, n]."""
    return x.ndim == 3 and x.shape[0] % rows > 0 and x.shape[1] == rows


def reached_from(
    model: nn.Module, inputs: Inputs, layer: str, projection: str, start: Callable[[ExitStack], None]
) -> Tensor:
    """[n] bool: columns of a projection's input that are NaN when `start` puts NaN somewhere."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].isnan().flatten(0, -2).any(dim=0).cpu())
        raise Stopped

    with hooked(ExitStack()) as stack:
        stack.callback(model.get_submodule(projection).register_forward_pre_hook(look).remove)
        stack.callback(model.get_submodule(layer).register_forward_hook(stop).remove)
        start(stack)
        run(model, inputs)
    return seen[0] if seen else torch.zeros(0, dtype=torch.bool)


def in_tensor(module: nn.Module, name: str, axis: int, entries: range) -> Callable[[ExitStack], None]:
    """NaN in some entries of a parameter or buffer."""

    def start(stack: ExitStack) -> None:
        tensor = getattr(module, name)
        before = tensor.detach().clone()
        tensor.data.index_fill_(axis, torch.tensor(list(entries), device=tensor.device), torch.nan)
        stack.callback(lambda: tensor.data.copy_(before))

    return start


def in_argument(module: nn.Module, name: str, axis: int, entries: range) -> Callable[[ExitStack], None]:
    """NaN in some entries of an argument."""
    place = KeptEntries(module, Follower(module="", name=name, axis=axis, argument=True))

    def poisoned(value: Tensor) -> Tensor:
        return value.index_fill(axis, torch.tensor(list(entries), device=value.device), torch.nan)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(kwargs.get(name), Tensor):
            kwargs = {**kwargs, name: poisoned(kwargs[name])}
        elif len(args) > place.position and isinstance(args[place.position], Tensor):
            args = (*args[: place.position], poisoned(args[place.position]), *args[place.position + 1 :])
        return args, kwargs

    def start(stack: ExitStack) -> None:
        stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    return start
