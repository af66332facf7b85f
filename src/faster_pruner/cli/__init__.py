"""The command line: parse, build values, one call, exit code. Heavy imports wait until a command runs."""

from faster_pruner.cli.app import app, main

__all__ = ["app", "main"]
