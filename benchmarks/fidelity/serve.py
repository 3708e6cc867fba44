"""`giusto serve` that also writes down every step.

    python benchmarks/fidelity/serve.py STEPS.jsonl [FLAGS OF giusto serve]

`/metrics` has step times in buckets and `/load` a moving average; medians need them one by one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steps import StepLog, to_line

from giusto import build, cli
from giusto.core.clock import WallClock
from giusto.engine.backend import EmbeddedBackend
from giusto.engine.settings import EngineSettings


def main() -> None:
    path, *flags = sys.argv[1:]
    make = build.backend
    with Path(path).open("w") as file:
        log = StepLog(lambda step: file.write(to_line(step)))

        def backend(settings: EngineSettings, clock: WallClock) -> EmbeddedBackend:
            made = make(settings, clock)
            made.subscribe(log.observe)
            return made

        build.backend = backend
        try:
            cli.app(["serve", *flags])
        finally:
            log.settle()


if __name__ == "__main__":
    main()
