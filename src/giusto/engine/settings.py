"""What the embedded engine can be told, as plain data that crosses to its process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from giusto.core.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
_COUNTS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "kv_cache_memory",
    "max_num_queued_reqs",
    "max_num_queued_tokens",
)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Memory in bytes, lengths in tokens; None leaves the choice to the engine.

    model: a folder, a GGUF file or a hub id; None is the default model.
    kv_cache_memory: None takes a share of the machine's memory.
    max_model_len: prompt and answer together; None takes what the model was trained for.
    lengths: how output lengths are bounded, a name of `learning.PREDICTORS`.
    speculation: how tokens are guessed ahead, a name of `spec.modes`; off does one at a time.
    draft_model: a folder or hub id, `default` for the default model's, `none`; None takes the
        default where the mode can do nothing without.
    state_dir: folder for what is learned, so that it outlives a restart; None keeps nothing.
    clock_offset: makes the engine's clock agree with the server's.
    """

    model: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 512
    block_size: int = 16
    kv_cache_memory: int | None = None
    prefix_caching: bool = True
    scheduling_policy: str = "giusto"
    policy_options: Mapping[str, str] = field(default_factory=dict)
    lengths: str = "histogram"
    speculation: str = "off"
    draft_model: str | None = None
    state_dir: str | None = None
    max_num_queued_reqs: int | None = 1024
    max_num_queued_tokens: int | None = None
    program_idle_timeout: float = 600.0
    check: bool = False
    seed: int | None = None
    clock_offset: float = 0.0
    log_level: str = "info"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not self.program_idle_timeout > 0:
            raise ConfigError(
                f"program_idle_timeout must be greater than 0, got {self.program_idle_timeout}"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", self.device):
            raise ConfigError(f"device must be auto, cpu or cuda, got {self.device!r}")
