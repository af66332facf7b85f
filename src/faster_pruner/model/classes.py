"""transformers' own tables of which class belongs to which auto class, read without importing any model."""

from __future__ import annotations

from functools import cache
from typing import Any

# Auto classes that only repeat what others hold.
_LEFT_OUT = frozenset({"AutoModelForPreTraining", "AutoModelForTextEncoding", "AutoModelWithLMHead"})


@cache
def _tables() -> dict[str, dict[str, tuple[str, ...]]]:
    """Auto class -> model type -> names of the classes that it opens."""
    from transformers.models.auto import modeling_auto

    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, auto in vars(modeling_auto).items():
        mapping: Any = getattr(auto, "_model_mapping", None)
        if not name.startswith("AutoModel") or name in _LEFT_OUT or mapping is None:
            continue
        own: dict[str, Any] = dict(mapping._model_mapping)
        found[name] = {
            model_type: (each,) if isinstance(each, str) else tuple(each) for model_type, each in own.items()
        }
    return found


def auto_classes_of(class_name: str, model_type: str) -> list[str]:
    """Names of the auto classes that open a class of a model type, those for a task ahead of the general ones."""
    found = [auto for auto, table in _tables().items() if class_name in table.get(model_type, ())]
    return sorted(found, key=lambda auto: (auto == "AutoModel", auto))


def stock_class(class_name: str, model_type: str) -> Any | None:
    """The transformers class of that name, if one of transformers' tables has it, and it is for the model type."""
    import transformers

    if auto_classes_of(class_name, model_type):
        return getattr(transformers, class_name, None)
    # a part of a larger model (its text model) is listed under the larger one's type
    if any(class_name in names for table in _tables().values() for names in table.values()):
        found = getattr(transformers, class_name, None)
        if getattr(getattr(found, "config_class", None), "model_type", None) == model_type:
            return found
    return None
