"""One tenant's flood does not cost the others their promises."""

from __future__ import annotations

import random

import pytest

from giusto.core.slo import Streaming, is_attained
from giusto.workload.records import Entry
from simulated import entry, run

SPAN = 20.0


def chats(tenant: str, rate: float, seed: int) -> list[Entry]:
    """Streams alike, of one tenant; the machine can do about twelve a second."""
    draw = random.Random(f"{tenant} {seed}")
    made, now = [], 0.0
    while (now := now + draw.expovariate(rate)) < SPAN:
        name = f"{tenant}{len(made)}"
        slo = Streaming(0.5, 0.06)
        made.append(entry(name, now, 80, 8, slo=slo, tenant=tenant, service_class="chat"))
    return made


def kept(entries: list[Entry], tenant: str) -> float:
    outcome = run(sorted(entries, key=lambda each: each.arrival), policy="giusto", check=False)
    records = [record for record in outcome.records if record.tenant == tenant]
    return sum(is_attained(record.slo, record.delivery) for record in records) / len(records)


@pytest.mark.parametrize("seed", range(3))
def test_a_tenants_flood_costs_the_others_little(seed: int) -> None:
    """Alone a modest tenant keeps all; beside one that sends forty times as much, nearly so."""
    modest = chats("ada", 1.0, seed)
    assert kept(modest, "ada") == 1.0
    flooded = [*modest, *chats("zoe", 40.0, seed)]
    assert kept(flooded, "ada") >= 0.9
    assert kept(flooded, "zoe") < 0.6
