"""Write the two profiles that come from AdaServe's published tables.

    python benchmarks/profiles/adaserve_tables.py [--llama-decode-ms 30] [--qwen-decode-ms 28]

Sources: the verify latencies, the SLO unit and the limits are flags in the scripts of
zikun-li/AdaServe-Artifact-Evaluation (exps/fig8, exps/fig9, exps/test.sh); the draft model's step
(5 and 4 ms) and the GPUs (4 and 2 A100 of 80 GB) are in the paper, arXiv 2501.12162, section 6.1.

Published latencies start at 128 tokens. What a step of one token takes, the low end of the table,
is not published: until it is fitted to a trace, `--…-decode-ms` is the scripts' SLO unit.
KV memory is what vLLM would find: 90 % of the GPUs less the weights. The limits are those of the
paper's baselines: 2,048 tokens and 512 sequences. Not published either, and assumed: the noise, and
25 GB/s between each GPU and host memory. Contexts are priced by the table alone.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from giusto.core.latency import TableLatency, terms
from giusto.profiles.profile import Profile
from giusto.profiles.roofline import Architecture, Hardware, num_blocks

BLOCK_SIZE = 16
NOISE = 0.03
FOLDER = Path(__file__).parents[2] / "src" / "giusto" / "profiles" / "data"


@dataclass(frozen=True, slots=True)
class Published:
    """One of the paper's two set-ups; times in milliseconds, `verify_ms` by tokens."""

    name: str
    model: Architecture
    gpus: int
    verify_ms: dict[int, float]
    draft_ms: float
    unit_ms: float


LLAMA = Published(
    name="llama-3.1-70b-4xa100",
    model=Architecture("Llama-3.1-70B-Instruct, fp16", 70.6e9, 80, 64, 8, 128),
    gpus=4,
    verify_ms={128: 55, 256: 85, 384: 105, 512: 125, 640: 145, 768: 165, 896: 185, 1024: 205},
    draft_ms=5,
    unit_ms=30,
)
QWEN = Published(
    name="qwen2.5-32b-2xa100",
    model=Architecture("Qwen2.5-32B-Instruct, fp16", 32.8e9, 64, 40, 8, 128),
    gpus=2,
    verify_ms={128: 48, 256: 66, 384: 84, 512: 104, 640: 124, 768: 144, 896: 164, 1024: 188},
    draft_ms=4,
    unit_ms=28,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-decode-ms", type=float, default=LLAMA.unit_ms)
    parser.add_argument("--qwen-decode-ms", type=float, default=QWEN.unit_ms)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write")
    given = parser.parse_args()
    for published, decode_ms in ((LLAMA, given.llama_decode_ms), (QWEN, given.qwen_decode_ms)):
        path = given.folder / f"{published.name}.json"
        profile(published, decode_ms).write(path)
        print(path)


def profile(published: Published, decode_ms: float) -> Profile:
    """The published figures as a profile."""
    hardware = Hardware(
        f"{published.gpus} x NVIDIA A100 80 GB, tensor parallel",
        flops=312e12,
        bandwidth=2.039e12,
        memory=80 * 2**30,
        count=published.gpus,
        link=25e9,
    )
    assert hardware.link is not None
    verify = ((tokens, ms / 1000) for tokens, ms in published.verify_ms.items())
    return Profile(
        name=published.name,
        hardware=hardware.name,
        model=published.model.name,
        measured="AdaServe's artifact: verify latency by tokens, draft step, SLO unit, limits; a "
        f"step of one token is set to {decode_ms:g} ms; KV memory by 90 % of the GPUs less the "
        "weights; noise and swap link are assumed (benchmarks/profiles/adaserve_tables.py)",
        latency=TableLatency(
            ((1, decode_ms / 1000), *verify), terms(draft_steps=published.draft_ms / 1000)
        ),
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks(published.model, hardware, BLOCK_SIZE),
        bytes_per_block=int(published.model.kv_bytes * BLOCK_SIZE),
        max_num_batched_tokens=2048,
        max_num_seqs=512,
        swap_bandwidth=hardware.link * hardware.count,
        slo_unit=published.unit_ms / 1000,
        noise=NOISE,
    )


if __name__ == "__main__":
    main()
