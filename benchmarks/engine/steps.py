"""Milliseconds a decode step of the embedded engine takes; one JSON object on the last line.

    python benchmarks/engine/steps.py [--model FOLDER] [--batches 1,8,32] [--context 128]

The engine is driven in process through `Engine.step`: scheduler, batch, model, sampler, commit.
`vllm_steps.py` prints the same figures for vLLM; compare them with `benchmarks/ab.py`.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from random import Random
from statistics import median

from giusto import build
from giusto.core.clock import WallClock
from giusto.core.request import SamplingParams, Submission
from giusto.engine.launch import adopt_environment
from giusto.engine.settings import EngineSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    given = parser.parse_args()
    adopt_environment()
    settings = EngineSettings(model=given.model, scheduling_policy="fcfs", prefix_caching=False)
    engine, _ = build.engine(settings, WallClock())
    random = Random(0)
    figures = {}
    for batch in map(int, given.batches.split(",")):
        for number in range(batch):
            prompt = tuple(random.randrange(100, 20_000) for _ in range(given.context))
            sampling = SamplingParams(
                max_tokens=given.steps + 1, temperature=0.0, ignore_eos=True, seed=0
            )
            engine.submit(
                Submission(
                    id=f"{batch}-{number}",
                    arrival=engine.clock.now(),
                    num_prompt_tokens=given.context,
                    prompt_ids=prompt,
                    sampling=sampling,
                )
            )
        ends = []
        while engine.scheduler.has_work:
            is_decoding = all(r.num_output_tokens for r in engine.scheduler.requests.values())
            engine.step()
            if is_decoding:
                ends.append(engine.clock.now())
        gaps = [later - earlier for earlier, later in pairwise(ends)]
        figures[f"batch_{batch}_ms"] = round(1e3 * median(gaps), 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
