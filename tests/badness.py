"""Counts the bad inputs that the tests try: each is to end in one clear line, never in a traceback."""

from __future__ import annotations

tried: list[str] = []


def bad_input(what: str) -> None:
    """Register one bad input, in words."""
    tried.append(what)
