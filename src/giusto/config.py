"""The operator's settings: frozen dataclasses, and the TOML file that fills them.

One file configures a server: `[server]`, `[classes.NAME]`, `[tiers]`, `[[keys]]`. Other tables
(`[engine]`, say) belong to whoever reads them with `read_table`. A name that is not known is an
error that names the nearest known one; nothing is ignored in silence. Standard library only.
Values in the file carry their unit in the name (`_ms`, `_s`, `_tokens`, `_bytes`); inside, times
are seconds. Secrets are kept as SHA-256 digests and never shown.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from giusto.core.errors import ConfigError
from giusto.core.request import DEFAULT_CAP
from giusto.core.slo import SLO, BestEffort, Bounds, Deadline, Program, Streaming

#: Environment variable with an API key, for servers without a TOML file.
KEY_VARIABLE = "GIUSTO_API_KEY"

LOG_LEVELS = ("critical", "error", "warning", "info", "debug")

NO_BOUNDS = Bounds()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """A promise that the operator gives a name.

    `cap` bounds its output length for planning; `priority` (smaller is more urgent) is for the
    policy of that name, where a request states none. `program_deadline` is the promise, in seconds,
    of programs whose first call is of this class and states none.
    """

    name: str
    slo: SLO = field(default_factory=BestEffort)
    weight: float = 1.0
    cap: int = DEFAULT_CAP
    priority: int = 0
    program_deadline: float | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may call, and the tightest promise they may claim.

    `min_priority` is the most urgent `priority` (smaller is more urgent). With
    `best_effort_only` every request of the key is best effort, whatever it asks for.
    """

    name: str
    digest: bytes = field(repr=False)
    tenant: str = ""
    is_admin: bool = False
    bounds: Bounds = NO_BOUNDS
    best_effort_only: bool = False
    min_priority: int = 0
    default_class: str | None = None

    @classmethod
    def of(cls, name: str, secret: str, *, is_admin: bool = False) -> ApiKey:
        """Make a key from its secret, which is not kept."""
        return cls(name, digest(secret), tenant=name, is_admin=is_admin)


BUILT_IN_CLASSES = {
    "priority": ServiceClass("priority", Streaming(ttft=1.0, tpot=0.1)),
    "default": ServiceClass("default"),
    "flex": ServiceClass("flex"),
}

BUILT_IN_TIERS = {"priority": "priority", "default": "default", "flex": "flex"}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything the HTTP server needs to know. The queue's bounds are enforced by the engine."""

    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""
    served_model_names: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_num_queued_reqs: int | None = 1024
    max_num_queued_tokens: int | None = None
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 32 << 10
    drain_timeout_s: float = 30.0
    vllm_metrics: bool = False
    log_level: str = "info"
    default_class: str = "default"
    keys: tuple[ApiKey, ...] = ()
    classes: Mapping[str, ServiceClass] = field(default_factory=lambda: dict(BUILT_IN_CLASSES))
    tiers: Mapping[str, str] = field(default_factory=lambda: dict(BUILT_IN_TIERS))

    def __post_init__(self) -> None:
        named = [("default_class", self.default_class)]
        named += [(f"tiers.{tier}", name) for tier, name in self.tiers.items()]
        named += [(f"default_class of key {k.name}", k.default_class or "") for k in self.keys]
        for where, name in named:
            if name and name not in self.classes:
                raise ConfigError(f"{where}: no class '{name}'{nearest(name, self.classes)}")
        for name, least in (("max_body_bytes", 1024), ("max_header_bytes", 1024)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(f"log_level must be one of {', '.join(LOG_LEVELS)}")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port must lie between 0 and 65535, got {self.port}")
        if not 0 <= self.drain_timeout_s < math.inf:
            raise ConfigError(f"drain_timeout_s must be 0 or more, got {self.drain_timeout_s}")
        for key in self.keys:
            if not key.name or "/" in key.name:
                raise ConfigError(f"a key's name must not be empty or hold '/', got '{key.name}'")
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ConfigError("two keys have the same name; ids are scoped by it")


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file: the server's settings, and the tables that others read."""

    server: ServerSettings = field(default_factory=ServerSettings)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Targets:
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    deadline_ms: float | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class _ClassTable:
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    deadline_ms: float | None = None
    starvation_s: float = 60.0
    weight: float = 1.0
    cap_tokens: int = DEFAULT_CAP
    priority: int = 0
    program_deadline_ms: float | None = None


@dataclass(frozen=True, slots=True)
class _KeyTable:
    name: str
    key: str | None = field(default=None, repr=False)
    key_env: str | None = None
    key_sha256: str | None = None
    tenant: str | None = None
    admin: bool = False
    min_priority: int = 0
    default_class: str | None = None


def load(path: Path, environ: Mapping[str, str], tables: Iterable[str] = ()) -> Config:
    """Read a TOML file; `tables` names the further tables that the caller reads itself."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    others = set(tables)
    known = {"server", "classes", "tiers", "keys", *others}
    for name, value in document.items():
        if name not in known:
            raise ConfigError(f"unknown table [{name}]{nearest(name, known)}")
        if not isinstance(value, list if name == "keys" else dict):
            raise ConfigError(f"{name} must be {'[[keys]]' if name == 'keys' else 'a table'}")
    server = server_settings(document, environ)
    return Config(server, {name: document[name] for name in others & document.keys()})


def server_settings(document: Mapping[str, Any], environ: Mapping[str, str]) -> ServerSettings:
    """Make the server's settings from a parsed file; an empty one gives the defaults."""
    classes = dict(BUILT_IN_CLASSES)
    for name, table in document.get("classes", {}).items():
        classes[name] = _service_class(name, table)
    tiers = BUILT_IN_TIERS | _texts(document.get("tiers", {}), "tiers")
    for tier in tiers:
        if tier not in BUILT_IN_TIERS:
            raise ConfigError(f"unknown tiers.{tier}{nearest(tier, BUILT_IN_TIERS)}")
    keys = [
        _api_key(table, f"keys[{i}]", classes, environ)
        for i, table in enumerate(document.get("keys", []))
    ]
    if secret := environ.get(KEY_VARIABLE):
        keys.append(ApiKey.of("env", secret))
    own: dict[str, Any] = {"keys": tuple(keys), "classes": classes, "tiers": tiers}
    table = document.get("server", {})
    if taken := own.keys() & table.keys():
        raise ConfigError(f"server.{min(taken)} has a table of its own: [{min(taken)}]")
    # A default class that the file renames carries over to the tier, unless that is given too.
    if "default_class" in table and "default" not in document.get("tiers", {}):
        tiers["default"] = str(table["default_class"])
    return read_table(ServerSettings, table, "server", own)


def read_table(cls: type[T], table: Any, where: str, given: Mapping[str, Any] | None = None) -> T:
    """Fill a flat dataclass from a TOML table, and fields from `given` as they are.

    ConfigError names what does not fit.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values = dict(given or {})
    for name, value in table.items():
        if name not in known:
            raise ConfigError(f"unknown setting {where}.{name}{nearest(name, known)}")
        values[name] = _value(value, hints[name], f"{where}.{name}")
    for name, entry in known.items():
        required = entry.default is MISSING and entry.default_factory is MISSING
        if required and name not in values:
            raise ConfigError(f"{where}.{name} is missing")
    return cls(**values)


def digest(secret: str) -> bytes:
    """SHA-256 of a secret: comparing digests hides its length too."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def nearest(name: str, known: Iterable[str]) -> str:
    """End of a sentence about an unknown name: the nearest known one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def make_slo(ttft: float | None, tpot: float | None, deadline: float | None) -> SLO | None:
    """Make the SLO that these targets state, in seconds; None without any, ValueError on both."""
    if deadline is not None:
        if ttft is not None or tpot is not None:
            raise ValueError("a deadline excludes ttft and tpot: state one kind of SLO")
        return Deadline(deadline)
    return None if ttft is None and tpot is None else Streaming(ttft, tpot)


def bounds_of(service: ServiceClass) -> Bounds:
    """The bounds that make `service` the tightest promise, for SLOs of either kind.

    A stream's class bounds a deadline by its first token's time; a deadline's class bounds a
    stream's rate by its deadline spread over its cap. Otherwise the other kind would be a way
    round the bound.
    """
    match service.slo:
        case Streaming(ttft, tpot):
            first = tpot if ttft is None else ttft
            return Bounds(first, first if tpot is None else tpot, first, service.weight)
        case Deadline(deadline) | Program(deadline):
            return Bounds(deadline, deadline / service.cap, deadline, service.weight)
        case BestEffort():
            return Bounds(weight=service.weight)


def _service_class(name: str, table: Any) -> ServiceClass:
    where = f"classes.{name}"
    read = read_table(_ClassTable, table, where)
    if not 0 <= read.weight < math.inf or read.cap_tokens < 1:
        raise ConfigError(f"{where} needs weight >= 0 and cap_tokens >= 1")
    whole = _s(read.program_deadline_ms)
    if whole is not None and not 0 < whole < math.inf:
        raise ConfigError(f"{where}.program_deadline_ms must be a positive number")
    try:
        slo = make_slo(_s(read.ttft_ms), _s(read.tpot_ms), _s(read.deadline_ms))
        promised = slo or BestEffort(read.starvation_s)
        return ServiceClass(name, promised, read.weight, read.cap_tokens, read.priority, whole)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _api_key(
    table: Any, where: str, classes: Mapping[str, ServiceClass], environ: Mapping[str, str]
) -> ApiKey:
    table = dict(table) if isinstance(table, Mapping) else table
    tightest = table.pop("tightest", None) if isinstance(table, dict) else None
    read = read_table(_KeyTable, table, where)
    bounds, best_effort_only = Bounds(), False
    if isinstance(tightest, str):
        if tightest not in classes:
            raise ConfigError(
                f"{where}.tightest: no class '{tightest}'{nearest(tightest, classes)}"
            )
        bounds = bounds_of(classes[tightest])
        best_effort_only = isinstance(classes[tightest].slo, BestEffort)
    elif tightest is not None:
        limits = read_table(_Targets, tightest, f"{where}.tightest")
        if any(v is not None and not 0 <= v < math.inf for v in _values(limits)):
            raise ConfigError(f"{where}.tightest: bounds must be numbers that are 0 or more")
        bounds = Bounds(
            _s(limits.ttft_ms), _s(limits.tpot_ms), _s(limits.deadline_ms), limits.weight
        )
    return ApiKey(
        name=read.name,
        digest=_digest(read, where, environ),
        tenant=read.name if read.tenant is None else read.tenant,
        is_admin=read.admin,
        bounds=bounds,
        best_effort_only=best_effort_only,
        min_priority=read.min_priority,
        default_class=read.default_class,
    )


def _digest(read: _KeyTable, where: str, environ: Mapping[str, str]) -> bytes:
    given = [s for s in (read.key, read.key_env, read.key_sha256) if s is not None]
    if len(given) != 1 or not given[0]:
        raise ConfigError(f"{where} needs exactly one of key, key_env and key_sha256")
    if read.key is not None:
        return digest(read.key)
    if read.key_env is not None:
        if not environ.get(read.key_env):
            raise ConfigError(f"{where}.key_env: the variable {read.key_env} is not set")
        return digest(environ[read.key_env])
    try:
        raw = bytes.fromhex(given[0])
    except ValueError:
        raw = b""
    if len(raw) != hashlib.sha256().digest_size:
        raise ConfigError(f"{where}.key_sha256 must be 64 hexadecimal digits")
    return raw


def _value(value: Any, hint: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is float and type(value) in (int, float):
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
        if typing.get_origin(option) is tuple and isinstance(value, list):
            inner = typing.get_args(option)[0]
            return tuple(_value(item, inner, where) for item in value)
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options if o is not type(None))
    # The value is not shown: it may be a secret in the wrong place.
    raise ConfigError(f"{where} must be {names}, not {type(value).__name__}")


def _texts(table: Mapping[str, Any], where: str) -> dict[str, str]:
    return {name: _value(value, str, f"{where}.{name}") for name, value in table.items()}


def _values(limits: _Targets) -> list[float | None]:
    return [getattr(limits, f.name) for f in fields(limits)]


def _s(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
