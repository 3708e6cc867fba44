"""A profile: one machine with one model, as the simulator needs to know it; a JSON file outside.

In the file each key of a quantity carries its unit, and step times have one of the three forms of
`core.latency`. docs/reference/profiles.md describes every field.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from giusto.core.errors import ConfigError
from giusto.core.latency import BatchShape
from giusto.core.plan import Limits
from giusto.profiles import form
from giusto.profiles.fields import Fields
from giusto.profiles.form import Latency

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Residual:
    """How far step times are off on one kind of step, as shares of what was measured."""

    count: int
    median: float
    p90: float


@dataclass(frozen=True, slots=True)
class DraftQuality:
    """How well a draft model guesses for one class of requests.

    level: how likely its first choice is the target's, at a position of middling difficulty;
    spread: standard deviation of the log-odds of that from position to position.
    """

    level: float
    spread: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level}")
        if not 0 <= self.spread < math.inf:
            raise ValueError(f"spread must be at least 0, got {self.spread}")

    @property
    def log_odds(self) -> float:
        return math.log(self.level / (1 - self.level))


@dataclass(frozen=True, slots=True)
class Profile:
    """One machine with one model. Seconds, bytes, bytes per second.

    measured: how, in words; it says what was not measured.
    latency: as it was fitted; `latency.scaled()` makes one that may learn without changing this.
    swap_bandwidth: of the link to host memory; None where nothing is swapped.
    slo_unit: a decode step alone, for SLOs that are stated as multiples of it.
    noise: standard deviation of the logarithm of step times of one shape.
    gap: from the end of a step to the start of the next while there is work: planning, booking.
    calibration: what `engine.profile.calibration_loop` took on this machine, for its speed today.
    draft: by service class, how well a draft model guesses, `default` for others; empty where there
    is none. control: AdaServe's constants for it (`spec.wishes.Control`).
    """

    name: str
    hardware: str
    model: str
    measured: str
    latency: Latency
    block_size: int
    num_blocks: int
    bytes_per_block: int
    max_num_batched_tokens: int
    max_num_seqs: int
    swap_bandwidth: float | None = None
    slo_unit: float | None = None
    noise: float = 0.0
    gap: float = 0.0
    calibration: float | None = None
    residuals: Mapping[str, Residual] = field(default_factory=dict)
    draft: Mapping[str, DraftQuality] = field(default_factory=dict)
    control: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for what no machine has, in the words of the file."""
        for name in ("name", "hardware", "model", "measured"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, key in _QUANTITIES.items():
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{key} must be above 0, got {value}")
        if not 0 <= self.gap < math.inf:
            raise ValueError(f"gap_s must be at least 0, got {self.gap}")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise must be at least 0 and below 1, got {self.noise}")
        if self.draft and "default" not in self.draft:
            raise ValueError("draft must say what holds for classes that it does not name: default")
        if not 0 < self.latency.step_time(BatchShape(decode_seqs=1)) < math.inf:
            raise ValueError("latency must give a step of one token some time")

    @property
    def limits(self) -> Limits:
        """The budgets of a step that a run has unless it says otherwise."""
        return Limits(self.max_num_batched_tokens, self.max_num_seqs, self.block_size)

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read a file; ConfigError names the file and the field that is wrong."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read profile {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"profile {path} is not UTF-8 text") from error
        return _parse(text, f"profile {path}")

    def write(self, path: Path) -> None:
        """Write a file that `read` reads back equal."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(_to_json(self), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write profile {path}: {error.strerror}") from error


_COUNTS = ("block_size", "num_blocks", "bytes_per_block", "max_num_batched_tokens", "max_num_seqs")

#: AdaServe's constants, as `spec.wishes.Control` names them.
_CONTROL = ("budget", "draft_budget", "max_depth", "min_depth", "max_width")

#: Optional quantities, and their keys in the file.
_QUANTITIES = {
    "swap_bandwidth": "swap_bytes_per_s",
    "slo_unit": "slo_unit_s",
    "calibration": "calibration_s",
}


def names() -> list[str]:
    """The built-in profiles."""
    files = (file.name for file in _built_in().iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))


def load(name_or_path: str) -> Profile:
    """Take a built-in profile by its name, or read a file.

    Raises ConfigError for a name that is neither, with those that exist.
    """
    known = names()
    if name_or_path in known:
        text = (_built_in() / f"{name_or_path}{_SUFFIX}").read_text(encoding="utf-8")
        return _parse(text, f"profile {name_or_path}")
    path = Path(name_or_path)
    if path.is_file() or path.suffix == _SUFFIX:
        return Profile.read(path)
    near = difflib.get_close_matches(name_or_path, known, n=1, cutoff=0.3)
    hint = f", did you mean {near[0]}?" if near else ";"
    raise ConfigError(
        f"no profile {name_or_path!r}{hint} there are {', '.join(known)}, or give a {_SUFFIX} file"
    )


def _built_in() -> resources.abc.Traversable:
    return resources.files("giusto.profiles") / "data"


def _parse(text: str, where: str) -> Profile:
    row = Fields.parse(text, where)
    try:
        profile = Profile(
            name=row.text("name"),
            hardware=row.text("hardware"),
            model=row.text("model"),
            measured=row.text("measured"),
            latency=form.read(row.object("latency")),
            block_size=row.count("block_size"),
            num_blocks=row.count("num_blocks"),
            bytes_per_block=row.count("bytes_per_block"),
            max_num_batched_tokens=row.count("max_num_batched_tokens"),
            max_num_seqs=row.count("max_num_seqs"),
            swap_bandwidth=row.optional_number("swap_bytes_per_s"),
            slo_unit=row.optional_number("slo_unit_s"),
            noise=row.optional_number("noise") or 0.0,
            gap=row.optional_number("gap_s") or 0.0,
            calibration=row.optional_number("calibration_s"),
            residuals=_residuals(row.optional_object("residuals")),
            draft=_draft(row.optional_object("draft")),
            control=_control(row.optional_object("control")),
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    row.finish()
    return profile


def _residuals(row: Fields | None) -> dict[str, Residual]:
    residuals: dict[str, Residual] = {}
    if row is None:
        return residuals
    for kind in row.keys:
        inner = row.object(kind)
        residuals[kind] = Residual(
            inner.count("count"), inner.number("median"), inner.number("p90")
        )
        inner.finish()
    return residuals


def _draft(row: Fields | None) -> dict[str, DraftQuality]:
    qualities: dict[str, DraftQuality] = {}
    for name in row.keys if row else ():
        assert row is not None
        inner = row.object(name)
        qualities[name] = DraftQuality(inner.number("level"), inner.number("spread"))
        inner.finish()
    return qualities


def _control(row: Fields | None) -> dict[str, int]:
    if row is None:
        return {}
    control = {name: row.count(name) for name in _CONTROL if name in row.keys}
    row.finish(_CONTROL)
    return control


def _to_json(profile: Profile) -> dict[str, object]:
    texts = ("name", "hardware", "model", "measured")
    content: dict[str, object] = {name: getattr(profile, name) for name in texts}
    content["latency"] = form.to_json(profile.latency)
    content |= {name: getattr(profile, name) for name in _COUNTS}
    for name, key in _QUANTITIES.items():
        if getattr(profile, name) is not None:
            content[key] = getattr(profile, name)
    content["noise"] = profile.noise
    if profile.gap:
        content["gap_s"] = profile.gap
    if profile.residuals:
        content["residuals"] = {
            kind: {"count": r.count, "median": r.median, "p90": r.p90}
            for kind, r in profile.residuals.items()
        }
    if profile.draft:
        content["draft"] = {
            name: {"level": q.level, "spread": q.spread} for name, q in profile.draft.items()
        }
    if profile.control:
        content["control"] = dict(profile.control)
    return content
