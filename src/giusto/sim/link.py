"""The link to host memory, over which preempted requests are swapped out and in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """Both ways share its bandwidth. `overlap` is the share of a step's computation during which
    blocks move unnoticed: 0 waits for all of them, 1 hides what takes no longer than the step.
    """

    seconds_per_block: float
    overlap: float = 0.0

    def wait(self, num_blocks: int, computing: float) -> float:
        """Seconds by which a step that computes for `computing` ends later for so many blocks."""
        return max(0.0, num_blocks * self.seconds_per_block - self.overlap * computing)
