"""What a simulated run is made of, apart from who arrives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from giusto.core.errors import ConfigError
from giusto.core.plan import Limits
from giusto.profiles.profile import Profile
from giusto.sim.asks import Terms
from giusto.sim.link import Link

GIB = 2**30


@dataclass(frozen=True, slots=True)
class SimSettings:
    """None leaves the profile's value.

    lengths: how policies are told output lengths, a name of `learning.PREDICTORS`; programs:
    whether they are told what history says of programs; speculation: how tokens are guessed ahead,
    a name of `spec.modes`, where the profile has a draft; model_error: the policy's model of step
    times starts wrong by up to this share, drawn per replica, and learns; noise: standard deviation
    of the log of true step times; speed: of the machine beside the one that was profiled;
    swap_space: GiB of host memory that each replica may swap preempted requests to, None recomputes
    them; overlap: share of a step's computation during which swapped blocks move unnoticed.
    """

    profile: Profile
    policy: str = "giusto"
    policy_options: Mapping[str, str] = field(default_factory=dict)
    lengths: str = "histogram"
    programs: bool = True
    speculation: str = "off"
    replicas: int = 1
    router: str = "round-robin"
    seed: int = 0
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    num_blocks: int | None = None
    prefix_caching: bool = True
    lookahead: int = 0
    model_error: float = 0.1
    noise: float | None = None
    speed: float = 1.0
    swap_space: float | None = None
    overlap: float = 0.0
    classes: Mapping[str, Terms] = field(default_factory=dict)
    check: bool = False

    def __post_init__(self) -> None:
        for name in ("replicas", "max_num_seqs", "max_num_batched_tokens", "num_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.lookahead not in (0, 1):
            raise ConfigError(f"lookahead must be 0 or 1, got {self.lookahead}")
        if not 0 <= self.model_error < 1:
            raise ConfigError(f"model_error must lie in [0, 1), got {self.model_error}")
        if not 0 < self.speed < math.inf:
            raise ConfigError(f"speed must be above 0 and finite, got {self.speed}")
        if not 0 <= self.overlap <= 1:
            raise ConfigError(f"overlap must lie in [0, 1], got {self.overlap}")
        if self.swap_space is not None:
            self._check_swap(self.swap_space)
        if self.speculation != "off" and not self.profile.draft:
            raise ConfigError(
                f"profile {self.profile.name} has no draft model: leave speculation off, or give "
                "the profile its draft (docs/reference/profiles.md)"
            )

    @property
    def limits(self) -> Limits:
        """Budgets of one step."""
        profile = self.profile
        return Limits(
            self.max_num_batched_tokens or profile.max_num_batched_tokens,
            self.max_num_seqs or profile.max_num_seqs,
            profile.block_size,
        )

    @property
    def host_blocks(self) -> int:
        """Blocks that fit into the swap space."""
        return int((self.swap_space or 0) * GIB / self.profile.bytes_per_block)

    @property
    def link(self) -> Link | None:
        """What swapped blocks go over."""
        bandwidth = self.profile.swap_bandwidth
        if self.swap_space is None or bandwidth is None:
            return None
        return Link(self.profile.bytes_per_block / bandwidth, self.overlap)

    def _check_swap(self, space: float) -> None:
        profile = self.profile
        if profile.swap_bandwidth is None:
            raise ConfigError(
                f"profile {profile.name} has no link to swap over: leave swap_space out, or give "
                "the profile its swap_bytes_per_s"
            )
        if not math.isfinite(space) or self.host_blocks < 1:
            block = profile.bytes_per_block / GIB
            raise ConfigError(f"swap_space must hold a block, {block:.2g} GiB or more, got {space}")
