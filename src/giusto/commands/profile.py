"""`giusto profile`: measure what steps cost here, for the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from giusto.commands.errors import explained
from giusto.commands.sizes import parse_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

    from giusto.profiles.profile import Profile


def profile(
    out: Annotated[Path, typer.Option(help="Where to write the profile.")] = Path("profile.json"),
    name: Annotated[
        str | None, typer.Option(help="What to call it. [the file's name without its ending]")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A folder, a GGUF file or a hub id; SmolLM2-135M-Instruct by default."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float32.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests in KV memory at once.")] = 128,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one step.")] = 512,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer. [the model's]")
    ] = None,
    block_size: Annotated[int, typer.Option(min=1, max=1024, help="Tokens of a KV block.")] = 16,
    kv_cache_memory: Annotated[
        str | None, typer.Option(help="KV memory, such as 2G. [as `giusto serve`]")
    ] = None,
    serve_for: Annotated[
        float, typer.Option(min=0, help="Seconds of serving whose steps count too; 0 for none.")
    ] = 90.0,
) -> None:
    """Measure the embedded engine on this machine and write a profile; takes minutes.

    A grid of steps is timed in a quiet process; then the engine serves the built-in workload beside
    its server and a client, for steps take longer there. Let nothing else run meanwhile. Simulate
    with it:

        giusto profile --out here.json

        giusto simulate --profile here.json --policy fcfs,giusto
    """
    with explained("profile"):
        from rich.console import Console

        from giusto import build
        from giusto.bench.results import prepare
        from giusto.commands.progress import bar
        from giusto.engine.launch import adopt_environment
        from giusto.engine.settings import EngineSettings

        prepare(out)
        adopt_environment()
        settings = EngineSettings(
            model=model,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            block_size=block_size,
            kv_cache_memory=None if kv_cache_memory is None else parse_bytes(kv_cache_memory),
        )
        errors = Console(stderr=True)
        errors.print("Loading the model …")
        with bar(errors, "measuring rounds of steps", 8) as advance:
            timings, made = build.profile(
                settings, name or out.stem, hardware(), lambda *_: advance()
            )
        if serve_for:
            from giusto.commands import serving

            errors.print(f"Serving for {serve_for:g} s …")
            rate = serving.rate_for(made.latency)
            made = serving.refit(made, timings, serving.watch(settings, rate, serve_for))
        made.write(out)
        Console().print(residuals(made))
        errors.print(f"Written to {out}; simulate with: giusto simulate --profile {out}")


def hardware() -> str:
    """This machine in words."""
    import os
    import platform

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        cpu = next(names, f": {cpu}").partition(":")[2].strip()
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores"


def residuals(made: Profile) -> RenderableType:
    """How far the fitted times are off, by kind of step."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{made.model} on {made.hardware}: errors of the fitted step times",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("kind of step")
    for column in ("measured", "median error", "p90"):
        table.add_column(column, justify="right")
    for kind, row in made.residuals.items():
        table.add_row(kind, str(row.count), f"{row.median:.1%}", f"{row.p90:.1%}")
    return table
