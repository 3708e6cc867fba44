"""One record type for everything that may arrive, and its JSON Lines form.

Generators, traces, client and simulator share it. A record says what is asked, under which promise,
and where in a program it stands; whoever replays it decides how. Times are seconds here; in the
file each key carries its unit.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from giusto.core.errors import ConfigError
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming
from giusto.workload.fields import Row

#: How gzip'ed files begin.
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. With `answer_of` its content is the answer of that call of the same program."""

    role: str
    content: str = ""
    answer_of: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens `start` to `start + tokens` of the text that is called `source`.

    Identity without text: prompts that begin with the same pieces share their KV. The answer to an
    entry is the text that is called by the entry's id.
    """

    source: str
    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """A record's place in a program.

    A call with parents arrives `tool_time` seconds after the last of them ended; its record's own
    arrival does not matter. `deadline` is the whole program's, in seconds.
    """

    program: str
    call: str
    parents: tuple[str, ...] = ()
    tool_time: float = 0.0
    deadline: float | None = None
    stage: int | None = None
    is_final: bool = False
    app: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One request to be made: text or token counts, and what it was promised.

    `arrival` is in seconds from the start. `slo` None means: judged with its program where that
    has a deadline, else by whatever its class is given by `promised`, else best effort.
    `output_tokens` is the recorded length of a trace: for executors, never for policies, which
    know `max_tokens`, the cap of the class. `pieces` say what the first prompt tokens are, where
    there is no text; the rest of the prompt is this entry's own.
    """

    id: str
    arrival: float
    service_class: str = "default"
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    prompt_tokens: int | None = None
    pieces: tuple[Piece, ...] = ()
    max_tokens: int = 256
    output_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    slo: SLO | None = None
    weight: float = 1.0
    tenant: str = ""
    step: Step | None = None

    @property
    def promise(self) -> SLO:
        """The SLO it is judged by."""
        if self.slo is not None:
            return self.slo
        if self.step is not None and self.step.deadline is not None:
            return Program(self.step.deadline)
        return BestEffort()

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Calls of its program that must have ended before it can be asked."""
        parents = self.step.parents if self.step is not None else ()
        quoted = (m.answer_of for m in self.messages if m.answer_of is not None)
        return tuple(dict.fromkeys((*parents, *quoted)))


def promised(entries: Iterable[Entry], slos: Mapping[str, SLO]) -> list[Entry]:
    """Give the entries without an SLO that of their class; a program SLO goes to the program."""
    result = []
    for entry in entries:
        slo = slos.get(entry.service_class)
        if slo is None or entry.slo is not None or isinstance(entry.promise, Program):
            result.append(entry)
        elif isinstance(slo, Program):
            if entry.step is None:
                raise ConfigError(f"entry {entry.id} has a program SLO but is in no program")
            result.append(replace(entry, step=replace(entry.step, deadline=slo.deadline)))
        else:
            result.append(replace(entry, slo=slo))
    return result


def read(path: Path) -> list[Entry]:
    """Read a JSON Lines workload; ConfigError names line and column of the first mistake."""
    try:
        # Not splitlines: text inside JSON may hold line separators other than the newline.
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if raw[:2] == GZIP else raw).decode("utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"cannot read workload {path}: {error.strerror}") from error
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"workload {path} is not UTF-8 text, plain or gzip'ed") from error
    entries = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _entry(Row.parse(line, f"{path.name} line {number}"), number)
        if entry.id in seen:
            raise ConfigError(f"{path.name} line {number}, column id: {entry.id!r} is there twice")
        seen.add(entry.id)
        entries.append(entry)
    if not entries:
        raise ConfigError(f"workload {path} has no entries")
    _check_programs(entries, path.name)
    return entries


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Write a workload that `read` reads back equal, to the rounding of milliseconds."""
    lines = (json.dumps(_to_json(entry), ensure_ascii=False) for entry in entries)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _entry(row: Row, number: int) -> Entry:
    entry = Entry(
        id=row.text("id") or f"line-{number}",
        arrival=row.number("arrival_s", minimum=0) or 0.0,
        service_class=row.text("class") or "default",
        messages=tuple(_message(message) for message in row.rows("messages")),
        prompt=row.text("prompt"),
        prompt_tokens=row.integer("prompt_tokens", minimum=1),
        pieces=tuple(_piece(piece) for piece in row.rows("pieces")),
        max_tokens=row.integer("max_tokens", minimum=1) or 256,
        output_tokens=row.integer("output_tokens", minimum=0),
        temperature=row.number("temperature", minimum=0) or 0.0,
        top_p=row.number("top_p", above=0) or 1.0,
        seed=row.integer("seed"),
        slo=None,
        tenant=row.text("tenant") or "",
        step=_step(row.row("program")),
    )
    slo = row.row("slo")
    if slo is not None:
        entry = replace(entry, slo=_slo(slo), weight=slo.number("weight", above=0) or 1.0)
        slo.finish()
    row.finish()
    if entry.messages and entry.prompt is not None:
        raise row.error("prompt", "give either messages or prompt, not both")
    if not entry.messages and entry.prompt is None and entry.prompt_tokens is None:
        raise row.error("messages", "give messages, prompt or prompt_tokens")
    if (entry.output_tokens or 0) > entry.max_tokens:
        raise row.error(
            "output_tokens", f"is above max_tokens, {entry.max_tokens}: an answer is cut there"
        )
    named = sum(piece.tokens for piece in entry.pieces)
    if named > (entry.prompt_tokens or 0):
        raise row.error("pieces", f"have {named} tokens, prompt_tokens is {entry.prompt_tokens}")
    return entry


def _piece(row: Row) -> Piece:
    piece = Piece(
        source=row.text("source", required=True) or "",
        start=row.integer("start", minimum=0) or 0,
        tokens=row.integer("tokens", minimum=1) or 1,
    )
    row.finish()
    return piece


def _message(row: Row) -> Message:
    message = Message(
        row.text("role", required=True) or "", row.text("content") or "", row.text("answer_of")
    )
    row.finish()
    return message


def _step(row: Row | None) -> Step | None:
    if row is None:
        return None
    deadline_ms = row.number("deadline_ms", above=0)
    program = row.text("id", required=True) or ""
    step = Step(
        program=program,
        call=row.text("call", required=True) or "",
        parents=row.texts("parents"),
        tool_time=row.number("tool_time_s", minimum=0) or 0.0,
        deadline=None if deadline_ms is None else deadline_ms / 1000,
        stage=row.integer("stage", minimum=0),
        is_final=row.flag("final"),
        app=row.text("app"),
    )
    row.finish()
    return step


def _slo(row: Row) -> SLO | None:
    ttft, tpot, deadline = (
        None if (ms := row.number(key, above=0)) is None else ms / 1000
        for key in ("ttft_ms", "tpot_ms", "deadline_ms")
    )
    if deadline is not None:
        if ttft is not None or tpot is not None:
            raise row.error("deadline_ms", "a deadline excludes ttft_ms and tpot_ms")
        return Deadline(deadline)
    return None if ttft is None and tpot is None else Streaming(ttft, tpot)


def _check_programs(entries: Iterable[Entry], name: str) -> None:
    """Calls must be named before those that wait for them, so that no program can wait for ever."""
    calls: dict[str, set[str]] = {}
    for entry in entries:
        known = calls.setdefault(entry.step.program, set()) if entry.step else set()
        for call in entry.waits_for:
            if call not in known:
                raise ConfigError(
                    f"{name}, entry {entry.id}, column program.parents: call {call!r} is not among "
                    "the earlier entries of its program"
                )
        if entry.step is not None:
            if entry.step.call in known:
                raise ConfigError(
                    f"{name}, entry {entry.id}, column program.call: {entry.step.call!r} is there "
                    "twice"
                )
            known.add(entry.step.call)


def _to_json(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": entry.id,
        "arrival_s": entry.arrival,
        "class": entry.service_class,
        "tenant": entry.tenant or None,
        "messages": [
            _without_none({"role": m.role, "content": m.content, "answer_of": m.answer_of})
            for m in entry.messages
        ]
        or None,
        "prompt": entry.prompt,
        "prompt_tokens": entry.prompt_tokens,
        "pieces": [asdict(piece) for piece in entry.pieces] or None,
        "max_tokens": entry.max_tokens,
        "output_tokens": entry.output_tokens,
        "temperature": entry.temperature,
        "top_p": entry.top_p,
        "seed": entry.seed,
        "slo": _slo_to_json(entry) or None,
        "program": _step_to_json(entry.step) if entry.step else None,
    }
    return _without_none(row)


def _slo_to_json(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"weight": None if entry.weight == 1.0 else entry.weight}
    match entry.slo:
        case Streaming(ttft, tpot):
            row |= {"ttft_ms": _to_ms(ttft), "tpot_ms": _to_ms(tpot)}
        case Deadline(deadline):
            row["deadline_ms"] = _to_ms(deadline)
        case _:
            pass
    return _without_none(row)


def _step_to_json(step: Step) -> dict[str, Any]:
    return _without_none(
        {
            "id": step.program,
            "call": step.call,
            "parents": list(step.parents) or None,
            "tool_time_s": step.tool_time or None,
            "deadline_ms": _to_ms(step.deadline),
            "stage": step.stage,
            "final": step.is_final or None,
            "app": step.app,
        }
    )


def _to_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _without_none(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}
