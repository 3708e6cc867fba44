"""What a simulated run is made of, apart from who arrives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from giusto.core.errors import ConfigError
from giusto.core.plan import Limits
from giusto.profiles.profile import Profile
from giusto.sim.asks import Terms


@dataclass(frozen=True, slots=True)
class SimSettings:
    """None leaves the profile's value.

    model_error: the policy's model of step times starts wrong by up to this share, drawn per
    replica, and learns; noise: standard deviation of the log of true step times; speed: of the
    machine beside the one that was profiled.
    """

    profile: Profile
    policy: str = "giusto"
    policy_options: Mapping[str, str] = field(default_factory=dict)
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
        if not self.speed > 0:
            raise ConfigError(f"speed must be above 0, got {self.speed}")

    @property
    def limits(self) -> Limits:
        """Budgets of one step."""
        profile = self.profile
        return Limits(
            self.max_num_batched_tokens or profile.max_num_batched_tokens,
            self.max_num_seqs or profile.max_num_seqs,
            profile.block_size,
        )
