"""The command line: flags in, objects from `build` out. Imports are lazy."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from giusto import __version__
from giusto.bench.command import bench
from giusto.bench.report_command import report
from giusto.commands.errors import explained
from giusto.commands.plan import plan
from giusto.commands.profile import profile
from giusto.commands.simulate import simulate, sweep
from giusto.commands.sizes import parse_bytes
from giusto.core.errors import ConfigError
from giusto.engine.settings import EngineSettings

if TYPE_CHECKING:
    from giusto.config import ServerSettings
    from giusto.engine.backend import EmbeddedBackend

app = typer.Typer(
    name="giusto",
    help="Serve language models so that each request gets the speed that it needs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(bench)
app.command()(simulate)
app.command()(sweep)
app.command()(plan)
app.command()(profile)
app.command()(report)

_SHARED = ("max_num_queued_reqs", "max_num_queued_tokens", "log_level")


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version)
    ] = False,
) -> None:
    """Giusto."""


@app.command()
def policies() -> None:
    """List the scheduling policies with their options and defaults."""
    from rich.console import Console
    from rich.table import Table

    from giusto.policies import DEFAULT, REGISTRY

    table = Table("policy", "what it does", "options", title="giusto serve --scheduling-policy")
    for name, module in REGISTRY.items():
        options = "\n".join(f"{f.name}={f.default}" for f in fields(module.Parameters))
        summary = (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        table.add_row(f"{name} (default)" if name == DEFAULT else name, summary, options or "none")
    Console().print(table)


def parse_options(words: list[str]) -> dict[str, str]:
    """Read `name=value` words."""
    options = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(f"--policy-option {word!r}: give name=value")
        options[name.strip()] = value.strip()
    return options


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Option(help="A folder, a GGUF file or a hub id; SmolLM2-135M-Instruct by default."),
    ] = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="Names that clients may ask for.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port. [8000]")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GIUSTO_API_KEY", help="Key that clients must send; prefer the variable."
        ),
    ] = None,
    scheduling_policy: Annotated[
        str | None, typer.Option(help="See `giusto policies`. [giusto]")
    ] = None,
    policy_option: Annotated[
        list[str] | None, typer.Option(help="name=value, as `giusto policies` lists them.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="How output lengths are bounded: histogram, forest. [histogram]"),
    ] = None,
    speculation: Annotated[
        str | None,
        typer.Option(
            help="Tokens guessed ahead: off, ngram, suffix, giusto; with a draft model chain:K, "
            "static, adaserve too; NAME:LENGTH. [off]"
        ),
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(help="What drafts: a folder, a hub id, default or none. [none; else default]"),
    ] = None,
    state_dir: Annotated[
        str | None, typer.Option(help="Folder that keeps what was learned across restarts. [none]")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer. [the model's]")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Requests in KV memory at once. [128]")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one step. [512]")
    ] = None,
    kv_cache_memory: Annotated[
        str | None,
        typer.Option(help="KV memory, such as 2G. [15 % of memory, at most 4G; GPU: 85 % of free]"),
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Tokens of a KV block. [16]")
    ] = None,
    enable_prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching", help="Share equal prefixes. [on]"
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, bfloat16, float32. [auto: bfloat16 where it is fast]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda. [auto]")] = None,
    max_num_queued_reqs: Annotated[
        int | None, typer.Option(min=1, help="Waiting requests before a 429. [1024]")
    ] = None,
    max_num_queued_tokens: Annotated[
        int | None, typer.Option(min=1, help="Waiting prompt tokens before a 429. [no bound]")
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, typer.Option(help="Origins that browsers may call from. [none]")
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(help="Path prefix that a proxy strips off.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with [server], [engine], [policy], [classes.…], [[keys]]."),
    ] = None,
    vllm_metrics: Annotated[
        bool | None, typer.Option("--vllm-metrics", help="Add metrics under vLLM's names.")
    ] = None,
    check: Annotated[
        bool | None, typer.Option("--check", help="Verify every plan; for debugging.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Makes requests without a seed repeatable.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning, error. [info]")
    ] = None,
) -> None:
    """Serve a model over OpenAI's API, with an SLO for each request.

    Flags win over the file, the file over the defaults. Try it:

        giusto serve

        curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d
        '{"messages": [{"role": "user", "content": "Hi"}], "slo": {"ttft_ms": 500, "tpot_ms": 50}}'
    """
    given = {name: value for name, value in locals().items() if value is not None}
    with explained("serve"):
        server, engine = _settings(given, config)
        logging.basicConfig(
            level=server.log_level.upper(),
            format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        )
        _serve(server, engine)


def _settings(given: dict[str, Any], config: Path | None) -> tuple[ServerSettings, EngineSettings]:
    """Merge defaults, file and flags; a flag goes to whichever settings have its name."""
    from giusto.config import ApiKey, Config, load, read_table, server_settings

    if config is None:
        read = Config(server_settings({}, os.environ))
    else:
        read = load(config, os.environ, tables=("engine", "policy"))
    policy = dict(read.tables.get("policy", {}))
    name = given.pop("scheduling_policy", None) or policy.pop("name", None)
    options = {key: str(value) for key, value in policy.items()}
    options |= parse_options(given.pop("policy_option", []))
    if "kv_cache_memory" in given:
        given["kv_cache_memory"] = parse_bytes(given["kv_cache_memory"])
    if "enable_prefix_caching" in given:
        given["prefix_caching"] = given.pop("enable_prefix_caching")
    if "served_model_name" in given:
        given["served_model_names"] = tuple(given.pop("served_model_name"))
    if "allowed_origins" in given:
        given["allowed_origins"] = tuple(given["allowed_origins"])
    server = read.server
    if secret := given.pop("api_key", None):
        others = tuple(key for key in server.keys if key.name != "env")
        server = replace(server, keys=(*others, ApiKey.of("env", secret)))
    table = read.tables.get("engine", {})
    for setting in _SHARED:
        if setting in table:
            raise ConfigError(f"{setting} belongs into [server], not into [engine]")
    engine = read_table(EngineSettings, table, "engine")
    server = replace(server, **_of(server, given))
    engine = replace(engine, **_of(engine, given), policy_options=options)
    # What both need to know is the server's to say.
    shared = {name: getattr(server, name) for name in _SHARED}
    policy_name = name or engine.scheduling_policy
    return server, replace(engine, **shared, scheduling_policy=policy_name)


def _of(settings: Any, given: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(settings)}
    return {name: value for name, value in given.items() if name in names}


def _serve(server: ServerSettings, engine: EngineSettings) -> None:
    from giusto.build import backend
    from giusto.core.clock import WallClock
    from giusto.server.app import serve as serve_http

    made = backend(engine, WallClock())
    typer.echo("Giusto is loading the model …", err=True)
    serve_http(made, server, on_ready=lambda port: _announce(server, made, engine, port))


def _announce(
    server: ServerSettings, made: EmbeddedBackend, engine: EngineSettings, port: int
) -> None:
    """Say where the server is and what to try."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    url = f"http://{host}:{port}"
    name = (server.served_model_names or (made.model.name,))[0]
    load = made.load()
    key = ' -H "Authorization: Bearer $GIUSTO_API_KEY"' if server.keys else ""
    body = (
        f'{{"model": "{name}", "messages": [{{"role": "user", "content": '
        '"What is the capital of France?"}], "temperature": 0, '
        '"slo": {"ttft_ms": 500, "tpot_ms": 50}}'
    )
    lines = (
        f"Giusto {__version__} serves {name} on {url} ({engine.scheduling_policy} policy, "
        f"up to {made.model.max_model_len} tokens, "
        f"KV memory for {load.total_blocks * engine.block_size:,})",
        "Try:",
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\",
        f"    -d '{body}'",
        f"Metrics: {url}/metrics   Health: {url}/health   Stop: Ctrl-C",
    )
    typer.echo("\n".join(lines))
    sys.stdout.flush()


if __name__ == "__main__":
    app()
