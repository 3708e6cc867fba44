"""What a run shows while it runs; the plain class counts and shows nothing."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from giusto.core.slo import is_attained
from giusto.metrics.records import Record
from giusto.workload.records import Entry


class Progress:
    """Counts of requests sent, answered and within their promise; calls of a program one by one."""

    def __init__(self) -> None:
        self.num_sent = 0
        self.num_ended = 0
        self.num_answered = 0
        self.num_attained = 0

    def begin(self, phase: str, total: int) -> None:
        """Start a phase of `total` steps."""

    def advance(self) -> None:
        """One step of the phase is done."""

    def sent(self, entry: Entry) -> None:
        """A request has left."""
        self.num_sent += 1

    def ended(self, record: Record) -> None:
        """A request has ended, in whatever way."""
        self.num_ended += 1
        self.num_answered += record.is_answered
        self.num_attained += is_attained(record.slo, record.delivery, record.origin)
        self.advance()


class Bar(Progress):
    """The same with a bar on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
        )
        # Twice a second: drawing must not delay the requests.
        self._bar = RichProgress(*columns, console=console, refresh_per_second=2, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, phase: str, total: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(phase, total=total, counts="")

    def advance(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, advance=1, counts=self._counts())

    def sent(self, entry: Entry) -> None:
        super().sent(entry)
        if self._task is not None:
            self._bar.update(self._task, counts=self._counts())

    def _counts(self) -> str:
        if not self.num_sent:
            return ""
        return f"sent {self.num_sent} · answered {self.num_answered} · in time {self.num_attained}"
