"""Write the two profiles that come from AdaServe's published tables.

    python benchmarks/profiles/adaserve_tables.py

Sources: the verify latencies, the SLO unit and the limits are flags in the scripts of
zikun-li/AdaServe-Artifact-Evaluation (exps/fig8, exps/fig9, exps/test.sh); the draft model's step
(5 and 4 ms) and the GPUs (4 and 2 A100 of 80 GB) are in the paper, arXiv 2501.12162, section 6.1.

Published latencies start at 128 tokens. What a step of one token takes is not published: it is
fitted to the paper's baselines at 3.0 requests/s (`benchmarks/paper/adaserve_baselines.py --fit`).
The draft model's quality is fitted there too, to AdaServe's tokens per iteration and attainment
(`benchmarks/paper/adaserve_speculation.py --fit`).
From there to 128 the step is hypot(memory, compute x tokens), as in a roofline: few tokens read the
weights, whatever their number, so that a straight line would charge small batches too much.
KV memory is what vLLM would find: 90 % of the GPUs less the weights. The limits are those of the
paper's baselines: 2,048 tokens and 512 sequences. Not published either, and assumed: the noise, and
25 GB/s between each GPU and host memory. Contexts are priced by the table alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import hypot, sqrt
from pathlib import Path

from giusto.core.latency import TableLatency, terms
from giusto.profiles.profile import DraftQuality, Profile
from giusto.profiles.roofline import Architecture, Hardware, num_blocks

BLOCK_SIZE = 16
NOISE = 0.03
FOLDER = Path(__file__).parents[2] / "src" / "giusto" / "profiles" / "data"


@dataclass(frozen=True, slots=True)
class Published:
    """One of the paper's two set-ups; times in milliseconds, `verify_ms` by tokens.

    decode_ms and the draft's quality are fitted, the rest published.
    """

    name: str
    model: Architecture
    gpus: int
    verify_ms: dict[int, float]
    draft_ms: float
    unit_ms: float
    decode_ms: float
    draft: dict[str, DraftQuality]
    control: dict[str, int]


LLAMA = Published(
    name="llama-3.1-70b-4xa100",
    model=Architecture("Llama-3.1-70B-Instruct, fp16", 70.6e9, 80, 64, 8, 128),
    gpus=4,
    verify_ms={128: 55, 256: 85, 384: 105, 512: 125, 640: 145, 768: 165, 896: 185, 1024: 205},
    draft_ms=5,
    unit_ms=30,
    decode_ms=34,
    draft={"default": DraftQuality(0.9, 1.0)},
    control={
        "budget": 512,
        "draft_budget": 96,
        "max_depth": 8,
        "min_depth": 4,
        "max_width": 3,
    },
)
QWEN = Published(
    name="qwen2.5-32b-2xa100",
    model=Architecture("Qwen2.5-32B-Instruct, fp16", 32.8e9, 64, 40, 8, 128),
    gpus=2,
    verify_ms={128: 48, 256: 66, 384: 84, 512: 104, 640: 124, 768: 144, 896: 164, 1024: 188},
    draft_ms=4,
    unit_ms=28,
    decode_ms=28,
    draft={"default": DraftQuality(0.7, 1.5)},
    control={
        "budget": 256,
        "draft_budget": 80,
        "max_depth": 5,
        "min_depth": 3,
        "max_width": 3,
    },
)
PUBLISHED = {published.name: published for published in (LLAMA, QWEN)}
#: Tokens below the first published latency at which the table gets a point.
LOW_END = (1, 16, 32, 48, 64, 96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    given = parser.parse_args()
    for published in PUBLISHED.values():
        path = given.folder / f"{published.name}.json"
        profile(published, published.decode_ms).write(path)
        print(path)


def profile(published: Published, decode_ms: float) -> Profile:
    """The published figures as a profile, with a step of one token that takes `decode_ms`."""
    hardware = Hardware(
        f"{published.gpus} x NVIDIA A100 80 GB, tensor parallel",
        flops=312e12,
        bandwidth=2.039e12,
        memory=80 * 2**30,
        count=published.gpus,
        link=25e9,
    )
    assert hardware.link is not None
    table = {**low_end(decode_ms, published.verify_ms[128]), **published.verify_ms}
    return Profile(
        name=published.name,
        hardware=hardware.name,
        model=published.model.name,
        measured="AdaServe's artifact: verify latency by tokens, draft step, SLO unit, limits; a "
        f"step of one token, {decode_ms:g} ms, is fitted to the paper's baselines at 3.0 requests "
        "per second, and up to 128 tokens the table is a roofline's; the draft's quality is "
        "fitted to AdaServe's own figures there; KV memory by 90 % of the GPUs less the weights; "
        "noise and swap link are assumed "
        "(benchmarks/profiles/adaserve_tables.py)",
        latency=TableLatency(
            tuple((tokens, round(ms / 1000, 6)) for tokens, ms in table.items()),
            terms(draft_steps=published.draft_ms / 1000),
        ),
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks(published.model, hardware, BLOCK_SIZE),
        bytes_per_block=int(published.model.kv_bytes * BLOCK_SIZE),
        max_num_batched_tokens=2048,
        max_num_seqs=512,
        swap_bandwidth=hardware.link * hardware.count,
        slo_unit=published.unit_ms / 1000,
        noise=NOISE,
        draft=published.draft,
        control=published.control,
    )


def low_end(decode_ms: float, first_ms: float) -> dict[int, float]:
    """Milliseconds by tokens, from one token to below 128, where a step takes `first_ms`."""
    compute = sqrt((first_ms**2 - decode_ms**2) / (128**2 - 1))
    memory = sqrt(decode_ms**2 - compute**2)
    return {tokens: round(hypot(memory, compute * tokens), 3) for tokens in LOW_END}


if __name__ == "__main__":
    main()
