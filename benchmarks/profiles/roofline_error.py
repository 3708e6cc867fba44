"""How far a roofline is off from measured GPU kernels: Llama-3.1-8B on two GPUs.

    python benchmarks/profiles/roofline_error.py [--data FOLDER]

FOLDER holds `measured/gpu_*_us.csv.gz`: kernel times of vLLM 0.19 in bf16, taken by LLMServingSim
(KAIST, MIT licence). A measured step is the sum of its kernels: all layers, the output head and the
sampler, without launch gaps and communication, so the roofline's overhead is set to 0 and its
parallel efficiency to 1. `max` is the same roofline with a sharp knee, `fitted` has the efficiency
in place of the default that gives the least median error over all steps.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

from giusto.core.latency import BatchShape, RooflineLatency
from giusto.profiles.roofline import Architecture, Hardware, latency

LLAMA = Architecture("Llama-3.1-8B", 8.03e9, layers=32, heads=32, kv_heads=8, head_size=128)
#: Dense bf16 FLOP/s, bytes/s and bytes by NVIDIA's data sheets.
GPUS = {
    "RTX4090": (165.2e12, 1008e9, 24e9),
    "RTXPRO6000": (503.8e12, 1792e9, 96e9),
}
#: Kernels of one layer by how often it runs them; the rest run once a step.
PER_LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
ONCE = ("embedding", "final_layernorm")

Curve = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One step and its kernels' seconds."""

    kind: str
    shape: BatchShape
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("GIUSTO_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    folder: Path = parser.parse_args().data / "measured"
    for name, (flops, bandwidth, memory) in GPUS.items():
        for count in (1, 2):
            steps = list(measured(folder, name, count))
            if steps:
                hardware = Hardware(
                    name, flops, bandwidth, memory, count, parallel_efficiency=1.0, overhead=0.0
                )
                report(hardware, steps)


def measured(folder: Path, gpu: str, count: int) -> Iterator[Measured]:
    """Yield the steps whose attention was timed, with all other kernels of such a step."""
    wanted = (gpu, LLAMA.name, str(count))

    def rows(file: str) -> Iterator[Mapping[str, str]]:
        with gzip.open(folder / file, "rt") as stream:
            for row in csv.DictReader(stream):
                if (row["gpu"], row["model"], row["tensor_parallel"]) == wanted:
                    yield row

    curves: dict[str, Curve] = defaultdict(list)
    for row in rows("gpu_dense_us.csv.gz"):
        curves[row["layer"]].append((int(row["tokens"]), float(row["time_us"])))
    for row in rows("gpu_per_sequence_us.csv.gz"):
        curves[row["layer"]].append((int(row["sequences"]), float(row["time_us"])))
    for row in rows("gpu_attention_us.csv.gz"):
        chunk, before, decodes, context = (
            int(row[key]) for key in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        )
        tokens = chunk + decodes
        if tokens > 2048:
            continue
        layer = float(row["time_us"])
        layer += sum(times * at(curves[name], tokens) for name, times in PER_LAYER.items())
        whole = LLAMA.layers * layer + sum(at(curves[name], tokens) for name in ONCE)
        ends = decodes + (chunk > 0)
        whole += at(curves["lm_head"], ends) + at(curves["sampler"], ends)
        kind = "mixed" if chunk and decodes else "decode" if decodes else "prefill"
        shape = BatchShape(chunk, chunk * before, decodes, decodes * context)
        yield Measured(kind, shape, whole * 1e-6)


def at(curve: Curve, x: int) -> float:
    """Straight lines between the measured points."""
    right = min(max(bisect_left(curve, (x, 0.0)), 1), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def report(hardware: Hardware, steps: list[Measured]) -> None:
    """Print the errors per kind of step."""
    best = min(
        (replace(hardware, efficiency=share / 100) for share in range(50, 101)),
        key=lambda tried: median(errors(latency(LLAMA, tried), steps)),
    )
    model, fitted = latency(LLAMA, hardware), latency(LLAMA, best)
    table = Table(title=f"{hardware.count} x {hardware.name}, {LLAMA.name}: error, median and p90")
    headings = (f"at {hardware.efficiency:.0%} of peak", "max", f"fitted: {best.efficiency:.0%}")
    for heading in ("steps", "", *headings):
        table.add_column(heading, justify="left" if heading == "steps" else "right")
    for kind in ("decode", "prefill", "mixed", "all"):
        chosen = [step for step in steps if kind in (step.kind, "all")]
        shown = [errors(model, chosen), errors(Sharp(model), chosen), errors(fitted, chosen)]
        table.add_row(kind, f"{len(chosen):,}", *(f"{median(e):.0%}, {p90(e):.0%}" for e in shown))
    Console().print(table)


def errors(model: RooflineLatency | Sharp, steps: list[Measured]) -> list[float]:
    return [abs(model.step_time(step.shape) / step.seconds - 1) for step in steps]


def p90(values: list[float]) -> float:
    return quantiles(values, n=10)[-1]


@dataclass(frozen=True, slots=True)
class Sharp:
    """A roofline whose knee is not rounded."""

    model: RooflineLatency

    def step_time(self, shape: BatchShape) -> float:
        memory, compute = self.model.memory, self.model.compute * shape.num_tokens
        beside = replace(self.model, memory=0.0, compute=0.0).step_time(shape)
        return max(memory, compute) + beside


if __name__ == "__main__":
    main()
