"""The exceptions that faster-pruner raises on purpose.

::

    FasterPrunerError
    ├── InputError               what was given cannot be used; exit code 2
    │   ├── UnsupportedModelError    a model that no family describes, or that is not what its family says
    │   ├── CheckpointError          a checkpoint that is missing, damaged or does not fit its config
    │   ├── BudgetError              a budget outside its range or below what the model can reach
    │   ├── DataError                a missing file, column or label, or too few rows
    │   ├── OptionError              an option value that does not exist or does not combine
    │   ├── OutputError              an output folder that is in the way or cannot be written
    │   └── NumericalError           activations that nothing can be computed from
    ├── VerificationError        the saved checkpoint did not behave like the model in memory; exit code 1
    └── ProcessError             another process of the same run failed or is gone; exit code 1, or the other one's

Every message says what arrived, what is supported and what to do. ``assert`` is for our own bugs only.
"""

# Characters of an error that is quoted in a sentence.
_LONGEST = 300


class FasterPrunerError(Exception):
    """Base of every error raised on purpose.

    Attributes:
        exit_code: what the command line returns for it.
        option: name of the setting that would help, empty when none would; the command line adds its own flag for it.
    """

    exit_code = 1

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class InputError(FasterPrunerError):
    """What the caller gave cannot be used."""

    exit_code = 2


class UnsupportedModelError(InputError):
    """No family describes the model, or it is not what its family says."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or its tensors do not fit its config."""


class BudgetError(InputError):
    """A budget is outside its range or below what the model can reach."""


class DataError(InputError):
    """Rows, columns, labels or files are missing or unusable."""


class OptionError(InputError):
    """An option has a value that does not exist or does not combine with the others."""


class OutputError(InputError):
    """The output folder is in the way or cannot be written."""


class NumericalError(InputError):
    """Activations are not finite, so that nothing can be computed from them."""


class VerificationError(FasterPrunerError):
    """The reopened checkpoint did not reproduce the model in memory."""


class ProcessError(FasterPrunerError):
    """Another process of the same run failed, is gone, or never came.

    Attributes:
        speaker: number of the process that says so; the others end in silence.
    """

    def __init__(self, message: str, *, option: str = "", speaker: int = 0) -> None:
        super().__init__(message, option=option)
        self.speaker = speaker


def one_line(error: Exception) -> str:
    """What an error says, on one line, cut short."""
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
