"""The only file that changes parameters or sizes of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from faster_pruner.families import FamilySpec, Sublayer, resolve
from faster_pruner.selection.search import Selection


class EmptyBranch(nn.Module):
    """Stands for an attention module that has no head left: its output has zero columns.

    Where the output projection lies inside the replaced module (DistilBERT) it is kept at `output_path` and applied,
    so the
    branch becomes its bias.
    """

    def __init__(self, output_path: str | None = None, output: nn.Linear | None = None) -> None:
        super().__init__()
        self._output_path = output_path
        if output_path is not None and output is not None:
            self.add_module(output_path, output)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """[B, S, d] -> ([B, S, 0] or the projected bias [B, S, d], None)."""
        del args, kwargs
        nothing = hidden_states.new_zeros((*hidden_states.shape[:-1], 0))
        if self._output_path is None:
            return nothing, None
        return self.get_submodule(self._output_path)(nothing), None


def prune_units(model: nn.Module, family: FamilySpec, selection: Selection) -> list[Sublayer]:
    """Remove, in place, every unit that `selection` does not keep; sublayers it does not name stay as they are.

    Returns:
        The sublayers with their new sizes.
    """
    for sublayer in resolve(model, family):
        keep = selection.get(sublayer.name)
        if keep is not None and keep.numel() < sublayer.units:
            _prune_sublayer(model, sublayer, keep)
    return resolve(model, family)


def resize(model: nn.Module, family: FamilySpec, units: Mapping[str, int]) -> list[Sublayer]:
    """Give sublayers the stated unit counts, keeping the first units: for a model that weights are loaded into next."""
    return prune_units(model, family, {name: torch.arange(count) for name, count in units.items()})


def _prune_sublayer(model: nn.Module, sublayer: Sublayer, keep: Tensor) -> None:
    """Slice one sublayer down to the units in `keep` [k]."""
    columns = (keep[:, None] * sublayer.unit_size + torch.arange(sublayer.unit_size)).flatten()
    slice_linear(sublayer.output_of(model), columns, axis=1)
    if keep.numel() == 0 and sublayer.spec.branch is not None:
        _empty_branch(model, sublayer)
        return
    for path in sublayer.producer_paths:
        producer = model.get_submodule(path)
        assert isinstance(producer, nn.Linear)
        slice_linear(producer, columns, axis=0)
    for follower in sublayer.spec.followers:
        count = keep.numel() if follower.counts == "units" else columns.numel()
        setattr(model.get_submodule(sublayer.prefix + follower.module), follower.attribute, count)


def _empty_branch(model: nn.Module, sublayer: Sublayer) -> None:
    """Replace the attention module of a sublayer that has no unit left."""
    assert sublayer.spec.branch is not None
    path = sublayer.prefix + sublayer.spec.branch
    inside = sublayer.spec.output.removeprefix(sublayer.spec.branch + ".")
    holds_output = inside != sublayer.spec.output
    replacement = EmptyBranch(inside, sublayer.output_of(model)) if holds_output else EmptyBranch()
    unit = sublayer.spec.unit_size
    if unit is not None:
        setattr(replacement, unit.attribute, sublayer.unit_size)
    replacement.train(model.get_submodule(path).training)
    model.set_submodule(path, replacement)


def bias_of(linear: nn.Linear) -> nn.Parameter | None:
    """The bias of a Linear, None for one without (torch's annotation says that there always is one)."""
    return linear.bias


def slice_linear(linear: nn.Linear, index: Tensor, *, axis: int) -> None:
    """Keep the rows (axis 0, with their biases) or columns (axis 1) in `index`, in place."""
    index = index.to(linear.weight.device)
    weight = linear.weight.detach().index_select(axis, index).contiguous()
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if axis == 0:
        linear.out_features = index.numel()
        bias = bias_of(linear)
        if bias is not None:
            kept = bias.detach().index_select(0, index).contiguous()
            linear.bias = nn.Parameter(kept, requires_grad=bias.requires_grad)
    else:
        linear.in_features = index.numel()


@torch.no_grad()
def set_linear(linear: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Overwrite the weight [d, n], and the bias [d] where one is given, in place."""
    linear.weight.copy_(weight)
    own = bias_of(linear)
    if bias is not None and own is not None:
        own.copy_(bias)


@torch.no_grad()
def scale_units(linear: nn.Linear, scales: Tensor, unit_size: int) -> None:
    """Multiply the columns of unit u of an output projection by ``scales[u]``, in place: masks folded into the
    weights.
    """
    linear.weight.mul_(scales.to(linear.weight).repeat_interleave(unit_size))


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round all floating-point parameters and buffers to what `dtype` can hold, keeping their own dtype."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype).to(tensor.dtype))
