"""Scheduling policies: one file each, none imports another; a name in `REGISTRY` is all it takes.

A policy's module has a frozen dataclass `Parameters` and `make(parameters, deps)`; the first line
of its docstring is what `giusto policies` prints. `NEEDS`, where it has one, names the fields of
`core.plan.Caps` that a driver must have for it; without it a policy works on every driver.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from giusto.core.errors import ConfigError
from giusto.core.plan import Policy
from giusto.policies import (
    autellix,
    edf,
    edf_shed,
    fcfs,
    giusto,
    jitserve,
    ltr,
    priority,
    sarathi,
    sjf,
    srpt_oracle,
    tempo,
    vllm_v0,
    vtc,
)
from giusto.policies.base import Dependencies

REGISTRY: dict[str, ModuleType] = {
    "giusto": giusto,
    "fcfs": fcfs,
    "priority": priority,
    "sarathi": sarathi,
    "edf": edf,
    "edf-shed": edf_shed,
    "vllm-v0": vllm_v0,
    "sjf": sjf,
    "ltr": ltr,
    "srpt-oracle": srpt_oracle,
    "vtc": vtc,
    "autellix": autellix,
    "tempo": tempo,
    "jitserve": jitserve,
}
DEFAULT = "giusto"

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def make(name: str, deps: Dependencies, options: Mapping[str, object] | None = None) -> Policy:
    """Build a policy by name; options are its parameters, as values or as text.

    Raises ConfigError for an unknown name or option, naming the nearest, and for a bad value.
    """
    module = module_named(name)
    for need in getattr(module, "NEEDS", ()):
        if not getattr(deps.caps, need):
            raise ConfigError(f"policy {name} needs {need}, which this engine cannot do")
    known = {f.name: f.default for f in fields(module.Parameters)}
    values = {}
    for option, value in (options or {}).items():
        if option not in known:
            raise ConfigError(f"policy {name} has no option {option!r}{_nearest(option, known)}")
        values[option] = _as_type(name, option, value, known[option])
    try:
        policy: Policy = module.make(module.Parameters(**values), deps)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"policy {name}: {error}") from error
    return policy


class _Uncached(SourceFileLoader):
    """Compiles what is there now: kept bytecode is told apart by its second and size alone."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def module_named(name: str) -> ModuleType:
    """The module of a policy: one in REGISTRY, or a Python file with `Parameters` and `make`.

    Raises ConfigError.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    path = Path(name)
    if path.suffix != ".py":
        raise ConfigError(f"unknown scheduling policy {name!r}{_nearest(name, REGISTRY)}")
    if not path.is_file():
        raise ConfigError(f"there is no file {name} to take a policy from")
    module_name = f"giusto_policy_{path.stem}"
    loader = _Uncached(module_name, str(path))
    spec = importlib.util.spec_from_loader(module_name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{name}: {type(error).__name__}: {error}") from error
    if not hasattr(module, "Parameters") or not hasattr(module, "make"):
        raise ConfigError(f"{name} needs a dataclass Parameters and make(parameters, deps)")
    return module


def _nearest(word: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (there are: {', '.join(known) or 'none'})"


def _as_type(policy: str, option: str, value: object, default: Any) -> object:
    """Read text as the type that the parameter's default has."""
    text = str(value).strip()
    try:
        if isinstance(default, bool):
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError, TypeError) as error:
        expected = type(default).__name__
        raise ConfigError(f"{policy}.{option} must be a {expected}, got {value!r}") from error
