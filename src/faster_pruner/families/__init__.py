"""Model families as data: where each family keeps its prunable sublayers."""

from faster_pruner.families.spec import (
    FamilySpec,
    Follower,
    Sublayer,
    SublayerSpec,
    UnitSize,
    base_model,
    resolve,
)
from faster_pruner.families.table import FAMILIES, family_of

__all__ = [
    "FAMILIES",
    "FamilySpec",
    "Follower",
    "Sublayer",
    "SublayerSpec",
    "UnitSize",
    "base_model",
    "family_of",
    "resolve",
]
