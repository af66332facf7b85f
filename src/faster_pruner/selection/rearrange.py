"""Mask rearrangement (Kwon et al. 2022, section 4.2): swaps inside one sublayer under the block Fisher information.

Removing the units S costs about ``1_S' F 1_S = || sum_{u in S} g_u ||^2`` when F is the block Fisher. Starting from the
mask that the search found, units are offered one at a time to the pruned set, from the least to the most important, and
whichever member then costs the most to keep pruned comes back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faster_pruner.selection.fisher import block


def rearrange(keep: Tensor, gradients: Tensor) -> Tensor:
    """Sorted indices of the units to keep, as many as in `keep`.

    Args:
        keep: [k] unit indices kept by the search.
        gradients: [N, U] mask gradients of the sublayer (grouped as the preset asks).
    """
    units = gradients.shape[1]
    kept = torch.zeros(units, dtype=torch.bool)
    kept[keep] = True
    if kept.all() or not kept.any():
        return keep
    fisher = block(gradients).cpu()
    order = fisher.diagonal().argsort(stable=True).tolist()
    pruned = ~kept
    # row_sum[u] = (F 1_S)[u], kept up to date so that one offer costs O(U)
    row_sum = fisher[:, pruned].sum(dim=1)
    for offered in order:
        if pruned[offered]:
            continue
        pruned[offered] = True
        row_sum += fisher[:, offered]
        # cost of S without u: total - 2 (F 1_S)[u] + F[u, u]
        without = fisher.diagonal() - 2 * row_sum
        without[~pruned] = torch.inf
        back = int(without.argmin())
        pruned[back] = False
        row_sum -= fisher[:, back]
    return (~pruned).nonzero().flatten()
