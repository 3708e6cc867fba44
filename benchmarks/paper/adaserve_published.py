"""What AdaServe's figures say of its baselines, in percent of requests that keep their TPOT.

Read off the vector figures of arXiv 2501.12162 (figures 8 and 9, 10, 11), to about 0.3 points.
Traces are those of zikun-li/AdaServe-Artifact-Evaluation, by their names in
`adaserve_slo_mix.csv.gz`: several rates of a figure were run on one file, whose own rate is in
between. `GOODPUT` and `ADASERVE` are AdaServe's own at 3.0 requests/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

LLAMA = "llama-3.1-70b-4xa100"
QWEN = "qwen2.5-32b-2xa100"
MODELS = (LLAMA, QWEN)

FITTED_TRACE = "fig8-9_rps3.0_ol256"
LAST_TRACE = "fig10_rps4.0_prop0.6"
#: Arrivals per second of `FITTED_TRACE`, and the cap on its answers in tokens.
FITTED_RATE = 1100 / 360
CAP = 256
#: Tokens/s of requests that kept their TPOT, and the share that did.
GOODPUT = {LLAMA: 616, QWEN: 612}
ADASERVE = {LLAMA: 0.979, QWEN: 0.955}


@dataclass(frozen=True, slots=True)
class Point:
    """Figures of one system on one trace; several where the paper ran the file again."""

    rates: str
    trace: str
    system: str
    figures: tuple[float, ...]

    @property
    def published(self) -> float:
        return mean(self.figures)


#: Our policy for each of the paper's systems.
POLICIES = {"Sarathi": "sarathi", "vLLM": "vllm-v0"}

_RATES = {
    LLAMA: ("2.6", "2.8", "3.0", "3.2/3.4", "3.8/4.0"),
    QWEN: ("2.4/2.6", "2.8", "3.0", "3.2/3.4", "3.8/4.0"),
}
_TRACES = (
    "fig8-9_rps2.4_ol256",
    "fig8-9_rps2.8_ol256",
    FITTED_TRACE,
    "fig8-9_rps3.2_ol256",
    LAST_TRACE,
)
_FIGURES: dict[str, dict[str, tuple[tuple[float, ...], ...]]] = {
    LLAMA: {
        "Sarathi": ((56.3,), (49.8,), (45.6,), (44.2, 43.8), (40.5, 39.9)),
        "vLLM": ((46.9,), (43.2,), (41.3,), (40.0, 39.7), (32.2, 35.7)),
    },
    QWEN: {
        "Sarathi": ((90.2, 91.1), (84.0,), (74.8,), (66.0, 65.7), (53.7, 53.9)),
        "vLLM": ((69.9, 70.3), (59.4,), (52.2,), (47.4, 48.1), (41.7, 41.7)),
    },
}
POINTS = {
    model: [
        Point(rates, trace, system, figures)
        for system, row in systems.items()
        for rates, trace, figures in zip(_RATES[model], _TRACES, row, strict=True)
    ]
    for model, systems in _FIGURES.items()
}

#: Figure 11: the SLO of code completion by scale, arrivals of LAST_TRACE. Only Sarathi is drawn for
#: both models. At 1.2 the file is LAST_TRACE itself, and the figures of 8 and 9 differ from it.
_SCALES = {1.6: (92.1, 99.4), 1.4: (71.6, 92.9), 1.2: (42.6, 68.4), 1.0: (38.4, 42.6)}
_SCALES |= {0.8: (38.2, 40.1), 0.6: (38.2, 40.1)}
#: Figure 10: a fifth of the requests is code completion; Sarathi is the best of the others there.
_FIFTH = (63.9, 75.6)
FURTHER = {
    model: [
        *(
            Point(
                f"scale {scale}",
                LAST_TRACE if scale == 1.2 else f"fig11_slo{scale}_ol256",
                "Sarathi",
                (row[at],),
            )
            for scale, row in _SCALES.items()
        ),
        Point("20 % code", "fig10_rps4.0_prop0.2", "Sarathi", (_FIFTH[at],)),
    ]
    for at, model in enumerate(MODELS)
}


def mean_answer(model: str) -> float:
    """Tokens of a mean answer on the fitted trace, from AdaServe's own goodput there.

    Tokens/s of attaining requests over attaining requests/s. Differs: the paper divides by the
    whole run, which outlasts the arrivals by some seconds, so this is a percent or two low.
    """
    return GOODPUT[model] / (ADASERVE[model] * FITTED_RATE)
