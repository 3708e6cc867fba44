"""`giusto bench`: flags in, table, result file and plots out.

Only typer is imported here, so that the command line starts fast; the rest comes when it runs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from giusto.core.errors import ConfigError

if TYPE_CHECKING:
    from giusto.bench.drive import Sent
    from giusto.bench.run import Settings
    from giusto.metrics.summary import Goodput

GOODPUT_KEYS = ("ttft", "tpot", "e2el")
GOODPUT_FORM = " ".join(f"{key}:MS" for key in GOODPUT_KEYS)
SLO_PLACES = ("auto", "body", "headers", "none")


def bench(  # noqa: PLR0913, PLR0917  a flag each
    base_url: Annotated[
        str, typer.Option(help="The server: any that speaks OpenAI's API.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="Model to ask for; the first that the server lists.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")
    ] = None,
    workload: Annotated[
        str,
        typer.Option(
            help="`mixed` (chat streams, tool calls, two-step programs, best effort at "
            "40/25/25/10 of arrivals), or a JSON Lines file with a request per line."
        ),
    ] = "mixed",
    request_rate: Annotated[
        str | None,
        typer.Option(
            help="Arrivals per second, or `inf` for all at once. A program counts as one. "
            "Without it mixed has 1, a file its own times."
        ),
    ] = None,
    burstiness: Annotated[
        float, typer.Option(help="Shape of the gaps: 1 is Poisson, below bursty, above even.")
    ] = 1.0,
    duration: Annotated[
        float | None, typer.Option(help="Seconds during which requests arrive; mixed has 300.")
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many arrivals.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes arrival times, prompts and sampling.")] = 0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            help="Bounds in ms as vLLM's flag: `--goodput ttft:500 tpot:50 e2el:5000`; adds "
            "`request_goodput`."
        ),
    ] = None,
    slo_in: Annotated[
        str,
        typer.Option(
            help="Where SLOs are sent: body, headers, none; auto is the body for a Giusto server "
            "and none for others. The client judges them in every case."
        ),
    ] = "auto",
    slo_scale: Annotated[
        float, typer.Option(min=0.01, help="mixed: SLO = this × the idle machine's median.")
    ] = 3.0,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Idle medians, from an earlier result or calibration; measured and written "
            "there if the file is missing. Use one file for all runs that you compare."
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Label of the run; else what the server says.")
    ] = None,
    save_result: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
    save_workload: Annotated[
        Path | None,
        typer.Option(
            help="Write what was sent, in token counts and with the times at which it left: "
            "`giusto simulate --workload` replays it."
        ),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Write PNG plots into this folder.")] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a request counts as failed.")
    ] = 600.0,
    more_goodput: Annotated[
        list[str] | None,
        typer.Argument(metavar="", help="Further bounds of --goodput, one per word.", hidden=True),
    ] = None,
) -> None:
    """Load a server and see which promises it keeps.

    Requests leave at their times whatever the server does (an open loop), with prompts of real
    text. Each is judged by the arrival of its tokens: a stream by its first token and its pace, a
    tool call by its deadline, a program by the end of its last call. Refused, failed and late
    requests are all missed ones.

    To compare two servers or policies, run each with one calibration, so that both are judged by
    the same promises, and start a fresh server for each, so that neither finds the other's cache:

        giusto bench --request-rate 2 --calibration idle.json --save-result a.json
    """
    try:
        from giusto.bench.run import Settings, find_workload  # noqa: PLC0415  an optional extra
        from giusto.bench.wire import SloIn  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"{error.name} is missing: pip install 'giusto[bench]'") from error
    if slo_in not in SLO_PLACES:
        raise typer.BadParameter(f"{slo_in!r}: give one of {', '.join(SLO_PLACES)}")
    try:
        find_workload(workload)
        settings = Settings(
            base_url=base_url,
            model=model,
            api_key=api_key,
            workload=workload,
            rate=None if request_rate is None else _rate(request_rate),
            burstiness=_positive("--burstiness", burstiness),
            duration=None if duration is None else _positive("--duration", duration),
            num_prompts=num_prompts,
            seed=seed,
            goodput=parse_goodput([*(goodput or []), *(more_goodput or [])]),
            slo_in=SloIn(slo_in),
            slo_scale=slo_scale,
            calibration=calibration,
            policy=policy,
            timeout=timeout,
            save_workload=save_workload,
        )
        _run(settings, save_result, plots)
    except ConfigError as error:
        typer.secho(f"giusto bench: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho("giusto bench: interrupted before the load began", err=True)
        raise typer.Exit(130) from None


def parse_goodput(flags: list[str]) -> Goodput | None:
    """Read `ttft:500 tpot:50`, in milliseconds; None without any."""
    from giusto.metrics.summary import Goodput  # noqa: PLC0415

    bounds: dict[str, float] = {}
    for part in " ".join(flags).replace(",", " ").split():
        name, _, text = part.partition(":")
        try:
            ms = float(text)
        except ValueError:
            ms = math.nan
        if name not in GOODPUT_KEYS or not 0 < ms < math.inf:
            raise ConfigError(f"--goodput: cannot read {part!r}; give {GOODPUT_FORM}")
        bounds[name] = ms / 1000
    return Goodput(**bounds) if bounds else None


def _run(settings: Settings, save_result: Path | None, plots: Path | None) -> None:
    import asyncio  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from giusto.bench import results  # noqa: PLC0415
    from giusto.bench.progress import Bar  # noqa: PLC0415
    from giusto.bench.run import bench as run_bench  # noqa: PLC0415
    from giusto.bench.table import tables  # noqa: PLC0415
    from giusto.workload import records  # noqa: PLC0415

    for path in (save_result, settings.save_workload):
        if path is not None:
            results.prepare(path)
    with Bar(Console(stderr=True)) as bar:
        result, run = asyncio.run(run_bench(settings, progress=bar))
    Console().print(tables(result))
    if save_result is not None:
        results.write(save_result, [result])
    if settings.save_workload is not None and run.sent is not None:
        records.write(settings.save_workload, run.sent.entries)
        typer.echo(saved(settings.save_workload, run.sent))
    if plots is not None:
        from giusto.bench.plots import plot  # noqa: PLC0415  slow to import

        for path in plot(result, run.records, plots):
            typer.echo(path)
    if run.is_interrupted:
        raise typer.Exit(130)


def saved(path: Path, sent: Sent) -> str:
    """Say what a saved workload holds, and what of it nobody counted."""
    words = [f"{path} has {len(sent.entries)} requests"]
    if sent.num_estimated:
        words.append(f"{sent.num_estimated} were not answered and have their class's median length")
    if sent.num_left_out:
        words.append(
            f"{sent.num_left_out} are left out, for the server did not count their prompts"
        )
    return "; ".join(words) + f". Replay: giusto simulate --workload {path}"


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise ConfigError(f"--request-rate: give a number above 0 or inf, got {text!r}")
    return rate


def _positive(flag: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ConfigError(f"{flag}: give a number above 0, got {value}")
    return value
