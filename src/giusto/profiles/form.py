"""The three forms of step times as JSON: coefficients by name, tables by tokens.

{"kind": "linear", "coefficients_s": {"constant": 0.01, "decode_seqs": 0.0008}}
{"kind": "table", "table_s": {"1": 0.03, "128": 0.055}, "coefficients_s": {…}}
{"kind": "roofline", "memory_s": 0.0098, "compute_s": 6.4e-05, "coefficients_s": {…}}
"""

from __future__ import annotations

from collections.abc import Callable

from giusto.core.latency import TERMS, LinearLatency, RooflineLatency, TableLatency, terms
from giusto.profiles.fields import Fields

Latency = LinearLatency | TableLatency | RooflineLatency


def read(row: Fields) -> Latency:
    """Read a model of step times; ConfigError names the field that is wrong."""
    kind = row.text("kind")
    if kind not in _READERS:
        raise row.error("kind", f"must be one of {', '.join(_READERS)}, got {kind!r}")
    model = _READERS[kind](row)
    row.finish()
    return model


def to_json(model: Latency) -> dict[str, object]:
    """The object that `read` reads back; coefficients that are 0 are left out."""
    coefficients = {
        name: seconds for name, seconds in zip(TERMS, model.coefficients, strict=True) if seconds
    }
    if isinstance(model, TableLatency):
        points = {str(tokens): seconds for tokens, seconds in model.points}
        return {"kind": "table", "table_s": points, "coefficients_s": coefficients}
    if isinstance(model, RooflineLatency):
        return {
            "kind": "roofline",
            "memory_s": model.memory,
            "compute_s": model.compute,
            "coefficients_s": coefficients,
        }
    return {"kind": "linear", "coefficients_s": coefficients}


def _linear(row: Fields) -> LinearLatency:
    return LinearLatency(_coefficients(row))


def _table(row: Fields) -> TableLatency:
    table = row.object("table_s")
    points = []
    for key in table.keys:
        if not key.isdecimal() or str(int(key)) != key:
            raise table.error(key, "must be a number of tokens")
        points.append((int(key), table.number(key)))
    if not points:
        raise row.error("table_s", "needs at least one point")
    return TableLatency(tuple(sorted(points)), _coefficients(row))


def _roofline(row: Fields) -> RooflineLatency:
    return RooflineLatency(row.number("memory_s"), row.number("compute_s"), _coefficients(row))


_READERS: dict[str, Callable[[Fields], Latency]] = {
    "linear": _linear,
    "table": _table,
    "roofline": _roofline,
}


def _coefficients(row: Fields) -> tuple[float, ...]:
    given = row.optional_object("coefficients_s")
    if given is None:
        return terms()
    given.finish(known=TERMS)
    return terms(**{name: given.number(name) for name in given.keys})
