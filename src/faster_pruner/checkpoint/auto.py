"""After `import faster_pruner`, transformers' own auto classes open pruned folders.

`watch` waits for transformers' auto classes to be imported, by whomever, and then wraps the one function in which they
look up the class of a config. A config that faster-pruner marked gets a class that shrinks; every other config goes
through untouched. Nothing is imported, registered or changed before that, and no model class is loaded.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODULE = "transformers.models.auto.auto_factory"
_FUNCTION = "_get_model_class"
_METADATA_KEY = "faster_pruner"


def watch() -> None:
    """Make the auto classes open pruned folders, now or as soon as they are imported. Doing it twice does no harm."""
    module = sys.modules.get(_MODULE)
    if module is not None:
        _wrap(module)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as everybody else would, and wraps its function when it has been run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec with our loader around its own."""
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads the module as its own loader does, then wraps its function."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the module's own loader, and then the wrapping."""
        self._own.exec_module(module)
        _wrap(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def _wrap(module: ModuleType) -> None:
    """Wrap the look-up in `auto_factory`."""
    original: Any = getattr(module, _FUNCTION, None)
    if original is None or hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def look_up(config: Any, *args: Any, **kwargs: Any) -> Any:
        stock = original(config, *args, **kwargs)
        return stock if getattr(config, _METADATA_KEY, None) is None else _stand_in(stock)

    setattr(module, _FUNCTION, look_up)


@functools.cache
def _stand_in(stock: Any) -> Any:
    """A class of the same name that opens pruned checkpoints of `stock`; what it gives is of the stock class."""

    class StandIn(stock):
        @classmethod
        def from_pretrained(cls, place: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
            """`stock.from_pretrained`, with smaller matrices."""
            from faster_pruner.checkpoint.loading import from_pretrained_with_sizes

            del cls
            return from_pretrained_with_sizes(place, config, stock, *args, **kwargs)[0]

        @classmethod
        def _from_config(cls, config: Any, **kwargs: Any) -> Any:
            from faster_pruner.checkpoint.loading import from_config_with_sizes

            del cls
            return from_config_with_sizes(config, stock, **kwargs)

    StandIn.__name__ = StandIn.__qualname__ = stock.__name__
    StandIn.__doc__ = stock.__doc__
    return StandIn
