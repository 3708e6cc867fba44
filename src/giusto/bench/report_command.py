"""`giusto report`: result files in, one HTML page and PNG files out.

Only typer is imported here, so that the command line starts fast; the rest comes when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from giusto.core.errors import ConfigError


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...",
            help="Results of `giusto bench`, `simulate` or `sweep`, or of vLLM's `bench serve`.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The page; PNG files go into the folder NAME-plots beside it.")
    ] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Draw result files as one HTML page.

    Attainment, goodput and gain by rate and by class, latencies, the course of the runs, and all
    numbers with their intervals. Runs of different workloads or profiles get chapters of their own:

        giusto report results/*.json --out report.html
    """
    try:
        from giusto.bench.report import report as write  # noqa: PLC0415  an optional extra
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{error.name} is missing: pip install 'giusto[bench]'") from error
    try:
        typer.echo(write(results, out, title=title))
    except ConfigError as error:
        typer.secho(f"giusto report: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from None
