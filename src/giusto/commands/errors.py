"""What went wrong on purpose, as one sentence and an exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from giusto.core.errors import GiustoError


@contextlib.contextmanager
def explained(command: str) -> Iterator[None]:
    """Turn what went wrong on purpose into one sentence and an exit code."""
    try:
        yield
    except GiustoError as error:
        typer.secho(f"giusto {command}: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from None
    except ModuleNotFoundError as error:
        typer.secho(
            f"giusto {command}: {error.name} is missing: pip install 'giusto[serve]'",
            fg=typer.colors.RED,
            err=True,
        )
        raise typer.Exit(2) from None
    except OSError as error:
        typer.secho(f"giusto {command}: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None
