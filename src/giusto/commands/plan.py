"""`giusto plan`: how many replicas keep the promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from giusto.commands.errors import explained
from giusto.commands.simulate import (
    DEFAULT_PROFILE,
    Arrivals,
    Burstiness,
    Duration,
    Early,
    Json,
    ProfileName,
    RouterName,
    Seeds,
    SloScale,
    Workload,
    grid,
)
from giusto.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from giusto.sim.run import SimRun

Result = dict[str, Any]


def plan(
    request_rate: Annotated[float, typer.Option(help="Arrivals per second of the whole fleet.")],
    attainment: Annotated[
        str,
        typer.Option(
            help="Share of promises to keep: for all classes, or CLASS:SHARE with commas between."
        ),
    ] = "0.95",
    policy: Annotated[str, typer.Option(help="One policy, as in `giusto simulate`.")] = "giusto",
    workload: Workload = "mixed",
    profile: ProfileName = DEFAULT_PROFILE,
    seed: Seeds = "0",
    duration: Duration = None,
    arrivals: Arrivals = "poisson",
    burstiness: Burstiness = 1.0,
    router: RouterName = "least-loaded",
    max_replicas: Annotated[int, typer.Option(min=1, help="Give up beyond so many.")] = 64,
    slo_scale: SloScale = 3.0,
    answers: Early = "0",
    json: Json = None,
) -> None:
    """Find the least number of replicas that keeps the asked share of promises in every class.

    Each size that is tried is a simulated run per seed; the worst seed decides. Try it:

        giusto plan --request-rate 5 --attainment chat:0.99,tool:0.95
    """
    given = dict(locals())
    with explained("plan"):
        from rich.console import Console

        from giusto.bench import results
        from giusto.commands.progress import bar

        if json is not None:
            results.prepare(json)
        console, errors = Console(), Console(stderr=True)
        search = Search(given, shares_of(attainment))
        # A search by halving tries one more size than the bits of the largest.
        with bar(errors, "simulating", max_replicas.bit_length() + 1) as advance:
            least = search.least(max_replicas, advance)
        console.print(search.table())
        if json is not None:
            results.write(json, search.results)
        if least is None:
            raise ConfigError(
                f"{max_replicas} replicas do not keep them all; the table shows what is missing: "
                "raise --max-replicas, or ask for less"
            )
        console.print(f"{least} replica{'s' if least > 1 else ''} of {profile} with {policy}")


def shares_of(text: str) -> dict[str, float]:
    """Read `0.95` (every class, under the name `all`) or `chat:0.99,tool:0.9`."""
    shares = {}
    for word in text.split(","):
        name, _, share = word.strip().rpartition(":")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not 0 < value <= 1:
            raise ConfigError(f"--attainment {text!r}: give a share such as 0.95, or CLASS:SHARE")
        shares[name or "all"] = value
    return shares


class Search:
    """Tries sizes of a fleet; a size is enough when every class has its share with every seed.

    `shares` of all classes by name, or of each class under `all`.
    """

    def __init__(self, given: dict[str, Any], shares: dict[str, float]) -> None:
        self._given = given | {
            "request_rate": str(given["request_rate"]),
            "num_prompts": None,
            "max_num_seqs": None,
            "max_num_batched_tokens": None,
            "enable_prefix_caching": True,
            "config": None,
            "speed": 1.0,
            "lengths": "histogram",
            "programs": True,
            "speculation": "off",
            "lookahead": 0,
            "swap_space": None,
            "overlap": 0.0,
            "records": None,
            "check": False,
        }
        self.shares = shares
        self.tried: dict[int, list[Result]] = {}

    @property
    def results(self) -> list[Result]:
        return [run for _, runs in sorted(self.tried.items()) for run in runs]

    def least(self, most: int, advance: Any) -> int | None:
        """The least enough size up to `most`: doubled until enough, then halved in between."""
        size, missing = 1, 0
        while not self._is_enough(size, advance):
            missing = size
            if size == most:
                return None
            size = min(2 * size, most)
        while size - missing > 1:
            middle = (size + missing) // 2
            if self._is_enough(middle, advance):
                size = middle
            else:
                missing = middle
        return size

    def kept(self, size: int) -> dict[str, float | None]:
        """The least attainment over the seeds, by class."""
        runs = self.tried[size]
        names = dict.fromkeys(name for run in runs for name in run["by_class"] if name != "all")
        worst: dict[str, float | None] = {}
        for name in names:
            values = [run["by_class"].get(name, {}).get("attainment") for run in runs]
            known = [value for value in values if value is not None]
            worst[name] = min(known, default=None)
        return worst

    def table(self) -> Table:
        """What each size tried has kept."""
        from rich import box
        from rich.table import Table

        table = Table(title="Kept promises, worst seed", title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("replicas", justify="right")
        names = list(self.kept(min(self.tried)))
        for name in names:
            share = self._share(name)
            table.add_column(f"{name} ≥ {share:.0%}" if share else name, justify="right")
        for size in sorted(self.tried):
            kept = self.kept(size)
            table.add_row(str(size), *(self._shown(name, kept.get(name)) for name in names))
        return table

    def _shown(self, name: str, value: float | None) -> str:
        if value is None:
            return "-"
        share = self._share(name)
        return f"[red]{value:.1%}[/]" if share and value < share else f"{value:.1%}"

    def _share(self, name: str) -> float | None:
        return self.shares.get(name, self.shares.get("all"))

    def _is_enough(self, size: int, advance: Any) -> bool:
        from giusto import build

        runs: list[SimRun] = grid(self._given | {"replicas": size})
        if len({run.label for run in runs}) > 1:
            raise ConfigError("giusto plan takes one policy")
        self.tried[size] = [build.simulate(run) for run in runs]
        advance()
        kept = self.kept(size)
        if unknown := self.shares.keys() - kept.keys() - {"all"}:
            raise ConfigError(
                f"no class {', '.join(sorted(unknown))} in this workload; there are "
                f"{', '.join(kept)}"
            )
        return all(
            value is None or share is None or value >= share
            for name, value in kept.items()
            for share in [self._share(name)]
        )
