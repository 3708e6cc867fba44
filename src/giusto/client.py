"""Programs of several calls under one deadline, from the client's side.

    with Program(client, deadline=60, app="research") as program:
        plan = program.chat("Name three questions about bees.", call="plan")
        notes = [program.chat(line, parents=[plan]) for line in plan.text.splitlines()]

`client` is an `openai.OpenAI` pointed at a Giusto server (`AsyncProgram` takes an `AsyncOpenAI`);
nothing of that package is imported here. The program's id, the calls' ids, their parents and stages
and the deadline ride in `extra_body`. On leaving the block the program is closed, unless a call
marked final has ended it. Whoever calls the client otherwise, for a stream say, adds what a call
has to carry, and hands the answer or its chunks back:

    call = program.begin("draft")
    for chunk in client.chat.completions.create(..., stream=True, **call.extra()):
        call.take(chunk)
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

from giusto.core import slo as slos

#: A promise for one call alone: an SLO in seconds, or the fields of `slo` as the server reads them.
OwnSlo = slos.Streaming | slos.Deadline | Mapping[str, object]
#: A conversation as the `openai` client takes it; a string is one turn of the user's.
Messages = str | Sequence[Mapping[str, Any]]

_TARGETS = ("ttft_ms", "tpot_ms", "deadline_ms")


@dataclass(slots=True, eq=False)
class Call:
    """One call of a program: where it stands, and what came of it.

    `slo` is the verdict that came with the answer, in the server's words and milliseconds: `met`,
    `kind`, `ttft_ms`, `e2e_ms` and so on (docs/reference/slo.md). It is empty while there is no
    answer, and where a server gives none. `answer` is the last object that `take` was given.
    """

    id: str
    stage: int
    parents: tuple[str, ...]
    extra_body: Mapping[str, Any]
    is_final: bool = False
    text: str = ""
    slo: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: BaseException | None = None
    answer: Any = None

    @property
    def has_own_slo(self) -> bool:
        """Whether it is judged by targets of its own, beside its program."""
        return any(self.extra_body.get("slo", {}).get(name) is not None for name in _TARGETS)

    @property
    def met(self) -> bool | None:
        """The server's verdict on this call; None without one."""
        met = self.slo.get("met")
        return met if isinstance(met, bool) else None

    def extra(self) -> dict[str, Any]:
        """What the client's `create` has to be given for this call."""
        return {"extra_body": dict(self.extra_body)}

    def take(self, part: Any) -> Self:
        """Read an answer, or a chunk of one: its text, its usage and its verdict."""
        self.answer = part
        for choice in part.choices:
            if choice.index == 0:
                turn = getattr(choice, "message", None) or getattr(choice, "delta", None)
                self.text += (choice.text if turn is None else turn.content) or ""
        if (usage := getattr(part, "usage", None)) is not None:
            self.prompt_tokens, self.output_tokens = usage.prompt_tokens, usage.completion_tokens
        if isinstance(verdict := getattr(part, "slo", None), Mapping):
            self.slo = verdict
        return self


class Ledger:
    """What `Program` and `AsyncProgram` share: the calls of one program. It sends nothing.

    `deadline` is in seconds from the arrival of the first call. `id` is drawn unless given; ids of
    two API keys never meet. May be used from several threads at once.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        deadline: float | None = None,
        app: str | None = None,
        id: str | None = None,
        model: str | None = None,
    ) -> None:
        if deadline is not None:
            slos.Program(deadline)  # says what is wrong with it before anything is sent
        if id is not None and (not id or "/" in id):
            raise ValueError(f"id {id!r}: leave it out to have one drawn, or give one without '/'")
        self.id = f"program-{secrets.token_hex(16)}" if id is None else id
        self.deadline = deadline
        self.app = app
        self._client = client
        self._model = model
        self._calls: dict[str, Call] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def calls(self) -> list[Call]:
        """All calls so far, in the order in which they were begun."""
        return list(self._calls.values())

    @property
    def met(self) -> bool | None:
        """Whether the deadline was kept, by the answers so far; None without deadline or answer.

        By the calls that are judged with the program: one with an SLO of its own tells nothing of
        the program's. A call that the server refused or failed loses it, and so does one that was
        served as best effort, which is what becomes of calls once the deadline has passed.
        """
        if self.deadline is None:
            return None
        if any(_is_lost(call) for call in self.calls):
            return False
        judged = [call for call in self.calls if call.slo and not call.has_own_slo]
        if not judged:
            return None
        return all(call.met and call.slo.get("kind") == "program" for call in judged)

    def begin(
        self,
        call: str | None = None,
        *,
        parents: Iterable[Call | str] = (),
        final: bool = False,
        slo: OwnSlo | None = None,
    ) -> Call:
        """Give a call its place: after `parents`, calls of this program or their ids.

        `final` marks the last one: the program closes when it has ended. Raises ValueError for a
        name that is taken, a parent that is not here, or a program that has ended.
        """
        with self._lock:
            self._check_open()
            name = self._free_name() if call is None else call
            if not name or name in self._calls:
                raise ValueError(f"call {name!r}: a name must be new in its program, and not empty")
            above = [self._known(parent) for parent in parents]
            stage = 1 + max((parent.stage for parent in above), default=-1)
            names = tuple(dict.fromkeys(parent.id for parent in above))
            begun = Call(name, stage, names, self._body(name, stage, names, final, slo), final)
            self._calls[name] = begun
            return begun

    def extra(self, call: str | None = None, **place: Any) -> dict[str, Any]:
        """`begin` and `Call.extra` in one, for a `create` whose answer is not handed back."""
        return self.begin(call, **place).extra()

    def report(self) -> str:
        """A line per call with its cost, and one on the deadline."""
        rows = [("call", "stage", "prompt", "output", "ms", "kept")]
        for call in self.calls:
            took = call.slo.get("e2e_ms")
            rows.append(
                (
                    call.id,
                    str(call.stage),
                    _shown(call.prompt_tokens),
                    _shown(call.output_tokens),
                    "-" if took is None else f"{took:.0f}",
                    "failed" if call.error else _yes(call.met),
                )
            )
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        if self.deadline is not None:
            lines.append(f"deadline of {self.deadline:g} s kept: {_yes(self.met)}")
        return "\n".join(lines)

    # What the senders need

    def _request(
        self, call: Call, messages: Messages, model: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Everything that `create` is given."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {**(options.get("extra_body") or {}), **call.extra_body}
        return {**options, "model": model, "messages": messages, "extra_body": body}

    def _check(self, options: Mapping[str, Any]) -> None:
        """Refuse what `chat` cannot do, before a call is begun."""
        if self._client is None:
            raise ValueError(
                "this program has no client: give it one, or pass **program.extra() to yours"
            )
        if options.get("stream"):
            raise ValueError(
                "chat() waits for whole answers; for a stream give your client "
                "**program.begin(...).extra() and hand each chunk to take()"
            )
        if clash := {"program", "slo"} & (options.get("extra_body") or {}).keys():
            raise ValueError(
                f"extra_body has {' and '.join(sorted(clash))}, which the program writes: use "
                "the arguments call, parents, final and slo"
            )

    def _lose(self, call: Call, error: BaseException) -> None:
        """Book a call that got no answer. A final one has ended nothing."""
        with self._lock:
            call.error, call.is_final = error, False

    def _first_model(self, listed: Any) -> str:
        for model in listed.data:
            self._model = str(model.id)
            return self._model
        raise ValueError("the server lists no model: give model=")

    def _needs_closing(self) -> bool:
        """Whether the server is to be told; from here on no call is begun."""
        with self._lock:
            has_ended = self._is_closed or any(call.is_final for call in self.calls)
            self._is_closed = True
            return bool(self._calls) and not has_ended and self._client is not None

    @property
    def _close_path(self) -> str:
        return f"/programs/{quote(self.id, safe='')}/close"

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"program {self.id} is closed: begin another")
        for call in self._calls.values():
            if call.is_final:
                raise ValueError(f"program {self.id} ends with call {call.id!r}, which was final")

    def _free_name(self) -> str:
        number = len(self._calls)
        while f"call-{number}" in self._calls:
            number += 1
        return f"call-{number}"

    def _known(self, parent: Call | str) -> Call:
        name = parent if isinstance(parent, str) else parent.id
        found = self._calls.get(name)
        if found is None:
            known = ", ".join(self._calls) or "none"
            raise ValueError(f"program {self.id} has no call {name!r}; there are: {known}")
        if isinstance(parent, Call) and parent is not found:
            raise ValueError(f"call {name!r} is of another program than {self.id}")
        return found

    def _body(
        self, name: str, stage: int, parents: tuple[str, ...], final: bool, slo: OwnSlo | None
    ) -> dict[str, Any]:
        """The fields of a request: `program`, and `slo` where the call has one of its own."""
        program: dict[str, Any] = {"id": self.id, "call": name, "stage": stage}
        if parents:
            program["parents"] = list(parents)
        if self.deadline is not None:
            program["deadline_ms"] = self.deadline * 1000
        if self.app is not None:
            program["app"] = self.app
        if final:
            program["final"] = True
        return {"program": program} if slo is None else {"program": program, "slo": _slo(slo)}


class Program(Ledger):
    """A program whose calls go through an `openai.OpenAI`; a context manager.

    Without `model` the calls go to the first one that the server lists. Failures of the client are
    raised as they are; they are booked, so that the verdict knows of them.
    """

    def chat(
        self,
        messages: Messages,
        *,
        call: str | None = None,
        parents: Iterable[Call | str] = (),
        final: bool = False,
        slo: OwnSlo | None = None,
        **options: Any,
    ) -> Call:
        """Send one call and wait for its answer; `options` go to the client's `create`."""
        self._check(options)
        model = options.pop("model", None) or self._model
        model = model or self._first_model(self._client.models.list())
        begun = self.begin(call, parents=parents, final=final, slo=slo)
        request = self._request(begun, messages, model, options)
        try:
            return begun.take(self._client.chat.completions.create(**request))
        except BaseException as error:
            self._lose(begun, error)
            raise

    def close(self) -> None:
        """Tell the server that no call will follow; it does not wait for the idle time then."""
        if self._needs_closing():
            self._client.post(self._close_path, cast_to=object)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # What went wrong inside is what matters; closing is a courtesy then.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()


class AsyncProgram(Ledger):
    """`Program` for an `openai.AsyncOpenAI`."""

    async def chat(
        self,
        messages: Messages,
        *,
        call: str | None = None,
        parents: Iterable[Call | str] = (),
        final: bool = False,
        slo: OwnSlo | None = None,
        **options: Any,
    ) -> Call:
        """Send one call and wait for its answer; `options` go to the client's `create`."""
        self._check(options)
        model = options.pop("model", None) or self._model
        model = model or self._first_model(await self._client.models.list())
        begun = self.begin(call, parents=parents, final=final, slo=slo)
        request = self._request(begun, messages, model, options)
        try:
            return begun.take(await self._client.chat.completions.create(**request))
        except BaseException as error:
            self._lose(begun, error)
            raise

    async def close(self) -> None:
        """Tell the server that no call will follow; it does not wait for the idle time then."""
        if self._needs_closing():
            await self._client.post(self._close_path, cast_to=object)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            await self.close()


def _slo(slo: OwnSlo) -> dict[str, Any]:
    """An SLO as the field `slo` of a request."""
    match slo:
        case slos.Streaming(ttft, tpot):
            pairs = {"ttft_ms": ttft, "tpot_ms": tpot}
            return {name: t * 1000 for name, t in pairs.items() if t is not None}
        case slos.Deadline(deadline):
            return {"deadline_ms": deadline * 1000}
        case _:
            return dict(slo)


def _is_lost(call: Call) -> bool:
    """Whether the server let the call down: refused for load, or failed.

    One that it never took in, with a status of 400 to 428, leaves the program as it was.
    """
    status = getattr(call.error, "status_code", None)
    return isinstance(status, int) and status >= 429


def _shown(count: int | None) -> str:
    return "-" if count is None else str(count)


def _yes(met: bool | None) -> str:
    return "-" if met is None else "yes" if met else "no"
