"""Files of rows: JSON Lines, or CSV with a header; plain or gzip'ed, with errors that say where."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from giusto.core.errors import ConfigError
from giusto.workload.fields import Row


class Record(Row):
    """A row whose columns are all needed unless taken by the methods of `Row`."""

    def count(self, key: str, *, minimum: int = 0) -> int:
        value = self.integer(key, minimum=minimum)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def tokens(self, key: str) -> int:
        """A number of tokens; a recorded 0 counts as 1, since every prompt and answer has one."""
        return max(1, self.count(key))

    def amount(self, key: str, *, minimum: float = 0.0) -> float:
        value = self.number(key, minimum=minimum)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def word(self, key: str) -> str:
        return self.text(key, required=True) or ""

    def amounts(self, key: str) -> list[float]:
        """A list of finite numbers."""
        value = self._take(key)
        if not isinstance(value, list) or not all(
            isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)
            for item in value
        ):
            raise self.error(key, f"expected a list of numbers, got {value!r}")
        return value

    def ids(self, key: str) -> list[int]:
        """A list of whole numbers of at least 0."""
        value = self._take(key)
        if not isinstance(value, list) or not all(_is_id(item) for item in value):
            raise self.error(key, f"expected a list of ids, got {value!r}")
        return value

    def pairs(self, key: str) -> list[tuple[int, int]]:
        """A list of pairs of whole numbers of at least 0."""
        value = self._take(key)
        if not isinstance(value, list) or not all(
            isinstance(item, list) and len(item) == 2 and all(map(_is_id, item)) for item in value
        ):
            raise self.error(key, f"expected a list of pairs of whole numbers, got {value!r}")
        return [(first, second) for first, second in value]

    def records(self, key: str) -> list[Record]:
        return cast("list[Record]", self.rows(key))

    def _nested(self, key: str, value: Any, prefix: str) -> Row:
        if not isinstance(value, dict):
            raise self.error(key, f"expected an object, got {value!r}")
        return Record(value, self._where, self._prefix + prefix)


class Cells(Record):
    """A row of CSV: text until a number is asked for; an empty cell is as good as a missing one."""

    def number(
        self, key: str, *, minimum: float | None = None, above: float | None = None
    ) -> float | None:
        self._convert(key)
        return super().number(key, minimum=minimum, above=above)

    def integer(self, key: str, *, minimum: int | None = None) -> int | None:
        self._convert(key)
        return super().integer(key, minimum=minimum)

    def _convert(self, key: str) -> None:
        cell = self._values.get(key)
        if isinstance(cell, str):
            try:
                self._values[key] = int(cell) if cell.strip().isdecimal() else float(cell)
            except ValueError:
                raise self.error(key, f"expected a number, got {cell!r}") from None


class Table:
    """A CSV file; `columns` are those of its header."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._lines = csv.reader(io.StringIO(text(path), newline=""))
        self.columns = [column.strip() for column in next(self._lines, [])]

    def rows(self, *needed: str) -> Iterator[Cells]:
        """Yield the rows once; ConfigError unless the header has the columns `needed`."""
        for column in needed:
            if column not in self.columns:
                has = ", ".join(self.columns) or "no header"
                raise ConfigError(
                    f"{self._name} line 1, column {column}: is missing; the file has {has}"
                )
        try:
            for cells in self._lines:
                where = f"{self._name} line {self._lines.line_num}"
                if not cells:
                    continue
                if len(cells) != len(self.columns):
                    raise ConfigError(
                        f"{where}: has {len(cells)} cells, the header {len(self.columns)}"
                    )
                values = zip(self.columns, cells, strict=True)
                yield Cells({column: cell or None for column, cell in values}, where)
        except csv.Error as error:
            raise ConfigError(f"{self._name} line {self._lines.line_num}: {error}") from error


def json_rows(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON Lines file; empty lines are skipped."""
    # Not splitlines: text inside JSON may hold line separators other than the newline.
    for number, line in enumerate(text(path).split("\n"), start=1):
        if line.strip():
            yield cast("Record", Record.parse(line, f"{path.name} line {number}"))


def text(path: Path) -> str:
    """The text of a file, unpacked where it is gzip."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    try:
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} is broken gzip: {error}") from error


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
