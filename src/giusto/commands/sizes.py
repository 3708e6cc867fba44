"""Sizes in bytes as people write them."""

from __future__ import annotations

from giusto.core.errors import ConfigError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(text: str) -> int:
    """Read a size such as 512M, 2G or 1.5GiB; bytes without a unit.

    Raises ConfigError.
    """
    word = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = word[-1:] if word[-1:].isalpha() else ""
    try:
        size = int(float(word.removesuffix(unit)) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ConfigError(f"cannot read the size {text!r}; give bytes, or 512M, 2G")
    return size
