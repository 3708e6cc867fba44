"""Typed reading of one JSON object, with errors that name where and what."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Any

from giusto.core.errors import ConfigError

LARGEST = sys.float_info.max


class Row:
    """A JSON object whose keys are taken one by one; what is left in the end is unknown.

    A null is as good as a missing key.
    """

    def __init__(self, values: dict[str, Any], where: str, prefix: str = "") -> None:
        self._values = values
        self._where = where
        self._prefix = prefix
        self._asked: list[str] = []

    @classmethod
    def parse(cls, line: str, where: str) -> Row:
        """Read one line; ConfigError unless it is a JSON object."""
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}, column {error.colno}: {error.msg}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: expected a JSON object, got {type(values).__name__}")
        return cls(values, where)

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._where}, column {self._prefix}{key}: {problem}")

    def text(self, key: str, *, required: bool = False) -> str | None:
        value = self._take(key)
        if value is None and required:
            raise self.error(key, "is missing")
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"expected text, got {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, f"expected a list of texts, got {value!r}")
        return tuple(value)

    def flag(self, key: str) -> bool:
        value = self._take(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, f"expected true or false, got {value!r}")
        return bool(value)

    def number(
        self, key: str, *, minimum: float | None = None, above: float | None = None
    ) -> float | None:
        value = self._take(key)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Compared, not converted: an integer may be too large for a float.
        if not is_number or not -LARGEST <= value <= LARGEST:
            raise self.error(key, f"expected a number, got {value!r}")
        if minimum is not None and value < minimum:
            raise self.error(key, f"must be at least {minimum}, got {value!r}")
        if above is not None and value <= above:
            raise self.error(key, f"must be above {above}, got {value!r}")
        return float(value)

    def integer(self, key: str, *, minimum: int | None = None) -> int | None:
        value = self._take(key)
        if value is None:
            return None
        # Not by way of float, which rounds what has more than 53 bits.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"expected a whole number, got {value!r}")
        if minimum is not None and value < minimum:
            raise self.error(key, f"must be at least {minimum}, got {value!r}")
        return value

    def row(self, key: str) -> Row | None:
        value = self._take(key)
        if value is None:
            return None
        return self._nested(key, value, f"{key}.")

    def rows(self, key: str) -> list[Row]:
        value = self._take(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(key, f"expected a list, got {value!r}")
        return [self._nested(key, item, f"{key}[{i}].") for i, item in enumerate(value)]

    def finish(self) -> None:
        """Raise ConfigError when a key was never asked for, with the nearest one that was."""
        for key in self._values:
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ""
                raise self.error(key, f"unknown column{hint}")

    def _take(self, key: str) -> Any:
        self._asked.append(key)
        return self._values.get(key)

    def _nested(self, key: str, value: Any, prefix: str) -> Row:
        if not isinstance(value, dict):
            raise self.error(key, f"expected an object, got {value!r}")
        return Row(value, self._where, self._prefix + prefix)
