"""`giusto simulate` and `giusto sweep`: the same policies in virtual time, as tables and files.

Only typer is imported here; the rest comes when a command runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from giusto.commands.errors import explained
from giusto.core.errors import ConfigError

if TYPE_CHECKING:
    from giusto.sim.run import SimRun

DEFAULT_PROFILE = "smollm2-135m-cpu"

Workload = Annotated[
    str,
    typer.Option(
        help="`mixed`, chat, interactive-batch, tenants, slo-mix, agents, tempo-mix; samples of "
        "traces: azure-code, azure-conversation, mooncake, sharegpt; a JSON Lines file; or "
        "reader:path[#part], such as adaserve:mix.csv.gz#fig8-9_rps3.2_ol256."
    ),
]
Policy = Annotated[
    str,
    typer.Option(
        help="Names as `giusto policies` lists them, with commas between; options behind a colon: "
        "sarathi:chunk_tokens=128+…; or a Python file with Parameters and make."
    ),
]
ProfileName = Annotated[str, typer.Option(help="A built-in profile or a file of `giusto profile`.")]
Rates = Annotated[
    str | None,
    typer.Option(
        help="Arrivals per second, several with commas; a program counts as one. A trace keeps "
        "its own times without it, the rest has 1."
    ),
]
Seeds = Annotated[str, typer.Option(help="Seeds of arrivals, contents and noise, with commas.")]
Duration = Annotated[
    float | None,
    typer.Option(help="Seconds during which requests arrive. [300; tempo-mix: 600; a trace: all]"),
]
Warmup = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Seconds from the start: what arrives in them is served but not counted, a program "
        "by its opening. [0; tempo-mix: 60]",
    ),
]
NumPrompts = Annotated[int | None, typer.Option(min=1, help="Stop after so many arrivals.")]
Arrivals = Annotated[
    str, typer.Option(help="Law of arrivals: poisson, gamma, mmpp (bursts), diurnal.")
]
Burstiness = Annotated[float, typer.Option(help="Shape of gamma gaps: below 1 bursty, above even.")]
Replicas = Annotated[int, typer.Option(min=1, help="Servers behind the router.")]
RouterName = Annotated[
    str, typer.Option(help="round-robin, least-loaded, locality (sessions and prefixes).")
]
SloScale = Annotated[
    float, typer.Option(min=0.01, help="mixed: SLO = this × the idle machine's median.")
]
Early = Annotated[
    str,
    typer.Option(
        "--answers",
        help="For traces with a cap instead of lengths: SHARE[:SHAPE] of answers end before it.",
    ),
]
MaxNumSeqs = Annotated[
    int | None, typer.Option(min=1, help="Requests in KV memory at once. [the profile's]")
]
MaxBatched = Annotated[
    int | None,
    typer.Option("--max-num-batched-tokens", min=1, help="Tokens of one step. [the profile's]"),
]
PrefixCaching = Annotated[
    bool,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching", help="Share equal prefixes."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="The operator's TOML file: promises, caps, weights, priorities of classes."),
]
Speed = Annotated[
    float, typer.Option(help="Speed of the machine beside the one that was profiled.")
]
Lookahead = Annotated[int, typer.Option(min=0, max=1, help="Plans made while a step runs.")]
SwapSpace = Annotated[
    float | None,
    typer.Option(help="GiB of host memory for preempted requests. [none: they are recomputed]"),
]
Overlap = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of a step's computation that hides swapping."),
]
Lengths = Annotated[
    str,
    typer.Option(
        help="What policies are told of output lengths: `histogram`, forest, constant:TOKENS, or "
        "oracle, the truth."
    ),
]
Programs = Annotated[
    bool,
    typer.Option(
        "--programs/--no-programs", help="Tell policies what history says of programs. [on]"
    ),
]
Speculation = Annotated[
    str,
    typer.Option(
        help="Tokens guessed ahead, where the profile has a draft: off, chain:K, static, adaserve, "
        "giusto; several with commas."
    ),
]
Check = Annotated[bool, typer.Option("--check", help="Verify every plan; slower.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes. [one per core]")]
Records = Annotated[
    Path | None,
    typer.Option(help="Folder for every request's record, one file per run, as they end."),
]
Json = Annotated[
    Path | None, typer.Option("--json", help="Write the result file here, after each run.")
]


def simulate(
    workload: Workload = "mixed",
    policy: Policy = "giusto",
    profile: ProfileName = DEFAULT_PROFILE,
    request_rate: Rates = None,
    seed: Seeds = "0",
    duration: Duration = None,
    warmup: Warmup = None,
    num_prompts: NumPrompts = None,
    arrivals: Arrivals = "poisson",
    burstiness: Burstiness = 1.0,
    replicas: Replicas = 1,
    router: RouterName = "round-robin",
    slo_scale: SloScale = 3.0,
    answers: Early = "0",
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxBatched = None,
    enable_prefix_caching: PrefixCaching = True,
    config: Config = None,
    speed: Speed = 1.0,
    lengths: Lengths = "histogram",
    programs: Programs = True,
    speculation: Speculation = "off",
    lookahead: Lookahead = 0,
    swap_space: SwapSpace = None,
    overlap: Overlap = 0.0,
    check: Check = False,
    jobs: Jobs = None,
    records: Records = None,
    json: Json = None,
) -> None:
    """Simulate policies on a workload in virtual time, and print who keeps which promises.

    Hours of traffic in seconds, on any machine that there is a profile of. Try it:

        giusto simulate --policy fcfs,sarathi,edf,giusto --request-rate 1.2 --seed 1,2,3
    """
    given = dict(locals())
    with explained("simulate"):
        _run("simulate", given, is_resuming=False)


def sweep(
    json: Annotated[Path, typer.Option("--json", help="Result file; what it has is not rerun.")],
    request_rate: Annotated[str, typer.Option(help="Rates, with commas; or FROM:TO:COUNT.")],
    workload: Workload = "mixed",
    policy: Policy = "giusto",
    profile: ProfileName = DEFAULT_PROFILE,
    seed: Seeds = "0",
    duration: Duration = None,
    warmup: Warmup = None,
    num_prompts: NumPrompts = None,
    arrivals: Arrivals = "poisson",
    burstiness: Burstiness = 1.0,
    replicas: Replicas = 1,
    router: RouterName = "round-robin",
    slo_scale: SloScale = 3.0,
    answers: Early = "0",
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxBatched = None,
    enable_prefix_caching: PrefixCaching = True,
    config: Config = None,
    speed: Speed = 1.0,
    lengths: Lengths = "histogram",
    programs: Programs = True,
    speculation: Speculation = "off",
    lookahead: Lookahead = 0,
    swap_space: SwapSpace = None,
    overlap: Overlap = 0.0,
    check: Check = False,
    jobs: Jobs = None,
) -> None:
    """Simulate policies over many rates; a sweep that was cut short goes on where it stopped.

    Draw it afterwards with `giusto report`. Try it:

        giusto sweep --policy fcfs,giusto --request-rate 0.4:2:9 --seed 1,2,3 --json sweep.json
    """
    given = dict(locals()) | {"records": None}
    with explained("sweep"):
        _run("sweep", given, is_resuming=True)


def _run(command: str, given: dict[str, Any], *, is_resuming: bool) -> None:
    """Run all cells of a grid with a bar, and print the table."""
    import os

    from rich.console import Console

    from giusto import build
    from giusto.commands.cells import Cells, run_cells
    from giusto.commands.progress import bar
    from giusto.commands.table import policies_table

    runs = grid(given)
    cells = Cells(runs, given["json"], is_resuming=is_resuming)
    console = Console()
    errors = Console(stderr=True)
    if is_resuming and len(cells.missing) < len(runs):
        errors.print(f"{len(runs) - len(cells.missing)} of {len(runs)} runs are in the file.")
    jobs = given["jobs"] or min(len(runs), os.cpu_count() or 1)
    with bar(errors, command, len(cells.missing)) as advance:
        for _ in run_cells(cells, build.simulate, jobs):
            advance()
    console.print(policies_table(cells.results))
    if given["json"] is not None:
        errors.print(f"Written to {given['json']}; draw it with: giusto report {given['json']}")


def grid(given: dict[str, Any]) -> list[SimRun]:
    """All runs that the flags ask for: policy by rate by seed. Raises ConfigError."""
    from giusto.policies import module_named
    from giusto.profiles.profile import load as load_profile
    from giusto.sim.load import Load, check, generated
    from giusto.sim.run import SimRun
    from giusto.sim.settings import SimSettings
    from giusto.workload.arrivals import Process

    machine = load_profile(given["profile"])
    check(given["workload"])
    rates = rates_of(given["request_rate"])
    if rates == [None] and given["workload"] in generated():
        rates = [1.0]
    classes = _classes(given["config"])
    process = Process(given["arrivals"], given["burstiness"])
    runs: list[SimRun] = []
    modes = _words(given["speculation"], "--speculation")
    for policy, mode in product(_words(given["policy"], "--policy"), modes):
        name, options = policy_of(policy)
        module_named(name)
        label = policy if mode == "off" else f"{policy} + {mode}"
        for rate in rates:
            for seed in _integers(given["seed"], "--seed"):
                settings = SimSettings(
                    machine,
                    name,
                    options,
                    lengths=given["lengths"],
                    programs=given["programs"],
                    speculation=mode,
                    replicas=given["replicas"],
                    router=given["router"],
                    seed=seed,
                    max_num_seqs=given["max_num_seqs"],
                    max_num_batched_tokens=given["max_num_batched_tokens"],
                    prefix_caching=given["enable_prefix_caching"],
                    lookahead=given["lookahead"],
                    speed=given["speed"],
                    swap_space=given["swap_space"],
                    overlap=given["overlap"],
                    classes=classes,
                    check=given["check"],
                )
                load = Load(
                    given["workload"],
                    rate,
                    seed,
                    given["duration"],
                    given["num_prompts"],
                    process,
                    _answers(given["answers"]),
                )
                path = _record_path(given["records"], label, rate, seed, len(runs))
                scale, warmup = given["slo_scale"], given.get("warmup")
                runs.append(SimRun(settings, load, label, scale, path, warmup))
    return runs


def _record_path(
    folder: Path | None, label: str, rate: float | None, seed: int, number: int
) -> Path | None:
    if folder is None:
        return None
    policy = re.sub(r"[^\w.-]+", "_", Path(label).stem if label.endswith(".py") else label)
    pace = "own" if rate is None else f"{rate:g}"
    return folder / f"{number:03}-{policy}-rate{pace}-seed{seed}.jsonl.gz"


def policy_of(label: str) -> tuple[str, dict[str, str]]:
    """Read `name:option=value+option=value`."""
    name, _, rest = label.partition(":")
    options = {}
    for word in rest.split("+") if rest else ():
        option, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(f"policy {label!r}: give options as name:option=value+option=value")
        options[option] = value
    return name, options


def rates_of(text: str | None) -> Sequence[float | None]:
    """Read `1,2.5` or `FROM:TO:COUNT`, evenly spaced; None is a trace's own pace."""
    if text is None:
        return [None]
    if text.count(":") == 2:
        first, last, count = _numbers(text.replace(":", ","), "--request-rate")
        if count < 2 or count != int(count):
            raise ConfigError(
                f"--request-rate {text!r}: COUNT must be a whole number of at least 2"
            )
        gap = (last - first) / (count - 1)
        return [round(first + gap * at, 6) for at in range(int(count))]
    return _numbers(text, "--request-rate")


def _words(text: str, flag: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ConfigError(f"{flag} needs at least one value")
    return words


def _numbers(text: str, flag: str) -> list[float]:
    try:
        numbers = [float(word) for word in _words(text, flag)]
    except ValueError:
        raise ConfigError(f"{flag} {text!r}: give numbers with commas between") from None
    if not all(0 < number < float("inf") for number in numbers):
        raise ConfigError(f"{flag} {text!r}: give finite numbers above 0")
    return numbers


def _integers(text: str, flag: str) -> list[int]:
    try:
        return [int(word) for word in _words(text, flag)]
    except ValueError:
        raise ConfigError(f"{flag} {text!r}: give whole numbers with commas between") from None


def _answers(text: str) -> Any:
    from giusto.workload.answers import Answers

    share, _, shape = text.partition(":")
    try:
        return Answers(float(share), float(shape or 1.0))
    except ValueError:
        raise ConfigError(f"--answers {text!r}: give SHARE or SHARE:SHAPE, such as 0.3:1") from None


def _classes(config: Path | None) -> dict[str, Any]:
    """Caps, weights and priorities from the operator's file."""
    import os

    from giusto.config import load
    from giusto.core.slo import BestEffort
    from giusto.sim.asks import Terms

    if config is None:
        return {}
    read = load(config, os.environ, tables=("engine", "policy"))
    return {
        name: Terms(
            service.cap,
            service.weight,
            service.priority,
            None if isinstance(service.slo, BestEffort) else service.slo,
        )
        for name, service in read.server.classes.items()
    }
