"""After `import faster_pruner`, transformers' own `AutoModelFor....from_pretrained` opens pruned folders.

For every stock class that we support, the auto classes are given a stand-in of the same name (through their public
`register`). It looks at the config it is handed: a dense one goes to the stock class untouched, a pruned one is built
with smaller Linears. What comes back is of the stock class either way.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from faster_pruner.checkpoint import opening
from faster_pruner.families import FAMILIES


def _stand_in(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class that opens dense and pruned checkpoints of `stock`."""

    class StandIn(stock):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
        stock_class = stock

        @classmethod
        def from_pretrained(cls, place: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
            """`stock.from_pretrained`, with smaller Linears where the config says so."""
            del cls
            if getattr(config, opening.METADATA_KEY, None) is None:
                return stock.from_pretrained(place, *args, config=config, **kwargs)
            config = copy.deepcopy(config)
            config.per_layer_config = None
            return opening.from_pretrained_with_sizes(place, config, stock, *args, **kwargs)

        @classmethod
        def _from_config(cls, config: Any, **kwargs: Any) -> Any:
            del cls
            return stock._from_config(config, **kwargs)  # pyright: ignore[reportPrivateUsage]

    StandIn.__name__ = StandIn.__qualname__ = stock.__name__
    StandIn.__doc__ = stock.__doc__
    return StandIn


def register() -> None:
    """Make transformers' auto classes open pruned folders of every supported family. Doing it twice does no harm."""
    for model_type in FAMILIES:
        config_class = type(AutoConfig.for_model(model_type))
        for auto in opening.AUTO_CLASSES:
            stock = opening.stock_class_of(auto, config_class)
            if stock is not None:
                auto.register(config_class, _stand_in(stock), exist_ok=True)
