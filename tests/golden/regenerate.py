"""Write the golden traces anew: JSON Lines, one plan per line.

PYTHONPATH=tests python -m golden.regenerate [policy ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from giusto.core.plan import Limits, Plan
from giusto.policies import REGISTRY
from harness import Drive, policy_named
from strategies import mixed_load


def path_of(name: str) -> Path:
    """Where the trace of a policy lies."""
    return Path(__file__).parent / f"{name}.jsonl"


def record(name: str) -> list[str]:
    """Run the policy on sixty mixed requests, memory for two or three at a time."""
    load = mixed_load(60, seed=60)
    policy, lengths = policy_named(name, truth=load.lengths)
    limits = Limits(max_num_batched_tokens=512, max_num_seqs=32, block_size=16)
    drive = Drive.of(
        policy, load.lengths, num_blocks=36, limits=limits, observers=[lengths.observe]
    )
    drive.run(load.asks)
    return [json.dumps(_plain(plan), separators=(",", ":")) for plan in drive.plans]


def _plain(plan: Plan) -> dict[str, object]:
    fields = {
        "step": plan.step,
        "grants": [[grant.request_id, grant.num_tokens] for grant in plan.grants],
        "preempt": [preempt.request_id for preempt in plan.preempt],
        "reject": [[refusal.request_id, refusal.reason] for refusal in plan.reject],
        "demote": [[refusal.request_id, refusal.reason] for refusal in plan.demote],
        "wake": None if plan.wake_at is None else round(plan.wake_at, 9),
    }
    return {key: value for key, value in fields.items() if value not in ([], None)}


def main() -> None:
    """Regenerate the named traces, or all."""
    for name in sys.argv[1:] or REGISTRY:
        path_of(name).write_text("\n".join(record(name)) + "\n")


if __name__ == "__main__":
    main()
