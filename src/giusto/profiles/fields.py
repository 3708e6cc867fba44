"""Typed reading of one JSON object, with errors that name the file and the field."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

from giusto.core.errors import ConfigError


class Fields:
    """A JSON object whose fields are taken one by one; what is left in the end is unknown.

    A null is as good as a missing field.
    """

    def __init__(self, values: dict[str, Any], where: str, prefix: str = "") -> None:
        self._values = values
        self._where = where
        self._prefix = prefix
        self._asked: list[str] = []

    @classmethod
    def parse(cls, text: str, where: str) -> Fields:
        """Read text that holds one JSON object."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}, line {error.lineno}: {error.msg}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: expected a JSON object, got {type(values).__name__}")
        return cls(values, where)

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._where}: {self._prefix}{key} {problem}")

    @property
    def keys(self) -> list[str]:
        return list(self._values)

    def text(self, key: str) -> str:
        value = self._required(key)
        if not isinstance(value, str):
            raise self.error(key, f"must be text, got {value!r}")
        return value

    def number(self, key: str) -> float:
        """A number of at least 0."""
        value = self._required(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise self.error(key, f"must be a number of at least 0, got {value!r}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self._take(key) is None else self.number(key)

    def count(self, key: str) -> int:
        """A whole number of at least 1."""
        value = self._required(key)
        if type(value) is not int or value < 1:
            raise self.error(key, f"must be a whole number of at least 1, got {value!r}")
        return value

    def object(self, key: str) -> Fields:
        value = self._required(key)
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, got {value!r}")
        return Fields(value, self._where, f"{self._prefix}{key}.")

    def optional_object(self, key: str) -> Fields | None:
        return None if self._take(key) is None else self.object(key)

    def finish(self, known: Iterable[str] = ()) -> None:
        """Raise ConfigError for a field that was never asked for, with the nearest that was."""
        expected = [*self._asked, *known]
        for key in self._values:
            if key not in expected:
                near = difflib.get_close_matches(key, expected, n=1)
                hint = f", did you mean {near[0]}?" if near else ""
                raise self.error(key, f"is unknown{hint}")

    def _required(self, key: str) -> Any:
        value = self._take(key)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def _take(self, key: str) -> Any:
        self._asked.append(key)
        return self._values.get(key)
