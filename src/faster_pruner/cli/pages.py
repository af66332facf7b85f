"""The command that writes report.html again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from faster_pruner.cli.printing import printed


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder that prune, cut, sweep or vocabulary wrote.", show_default=False)
    ],
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", help="Also write the pictures into this folder, as SVG.", show_default=False),
    ] = None,
) -> None:
    """Write report.html of FOLDER again, from its result.json, and print where it is."""
    from faster_pruner.api.page import write_page

    files = [str(file) for file in write_page(folder, pictures=pictures)]
    with printed(lambda: files) as console:
        for file in files:
            console.print(file, soft_wrap=True)
