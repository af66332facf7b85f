"""How transformers is called: in silence, and with its errors expected."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging as transformers_logging

# What transformers raises, somewhere inside, for a config that makes no sense.
FROM_A_CONFIG = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, ImportError),
    *(AssertionError, StrictDataclassError),
)
# Says that weights are in files, which was asked for.
_OFFLOADING = "accelerate.big_modeling"


@contextmanager
def quiet_transformers() -> Generator[None]:
    """No progress bars or warnings of transformers and accelerate: what matters is said by our own errors."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    offloading = logging.getLogger(_OFFLOADING)
    said = offloading.level
    offloading.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # torch's of matrices without a column, which the model under construction has for a moment
            warnings.simplefilter("ignore")
            yield
    finally:
        offloading.setLevel(said)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
