"""Messages between the server and the engine's loop: length-prefixed JSON, nothing executable.

Plain data both ways: submissions and commands in, events and load out. No pickle: a frame can
only ever become the types named here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from giusto.core import events as ev
from giusto.core.latency import BatchShape
from giusto.core.plan import PreemptHow, StepOutcome, StepTimes, Yield
from giusto.core.request import FinishReason, ProgramRef, Reason, SamplingParams, Submission
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming

_HEAD = struct.Struct("!I")
#: No message is larger: a prompt of a million tokens takes about eight.
MAX_FRAME_BYTES = 64 << 20

_SLOS: dict[str, type] = {
    kind.__name__: kind for kind in (Streaming, Deadline, Program, BestEffort)
}
_TUPLES = ("logit_bias", "stop", "stop_token_ids")


def pack_frame(message: dict[str, Any]) -> bytes:
    """Encode one message with its length in front."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _HEAD.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take more bytes; yields the messages that they complete.

        Raises ValueError for a frame beyond the size limit.
        """
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            (size,) = _HEAD.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes exceeds {MAX_FRAME_BYTES}")
            if len(self._buffer) < _HEAD.size + size:
                return
            body = bytes(self._buffer[_HEAD.size : _HEAD.size + size])
            del self._buffer[: _HEAD.size + size]
            yield json.loads(body)


def encode_ask(ask: Submission) -> dict[str, Any]:
    """A submission as JSON data."""
    data = {name: getattr(ask, name) for name in Submission.__slots__}
    data["prompt_ids"] = list(ask.prompt_ids)
    data["slo"] = encode_slo(ask.slo)
    data["sampling"] = asdict(ask.sampling)
    data["program"] = asdict(ask.program) if ask.program else None
    data["block_keys"] = [key.hex() for key in ask.block_keys] if ask.block_keys else None
    return data


def decode_ask(data: dict[str, Any]) -> Submission:
    """Undo `encode_ask`."""
    data = dict(data)
    sampling = dict(data.pop("sampling"))
    for name in _TUPLES:
        sampling[name] = tuple(sampling[name])
    sampling["logit_bias"] = tuple((token, bias) for token, bias in sampling["logit_bias"])
    program = data.pop("program")
    keys = data.pop("block_keys")
    return Submission(
        prompt_ids=tuple(data.pop("prompt_ids")),
        slo=decode_slo(data.pop("slo")),
        sampling=SamplingParams(**sampling),
        program=ProgramRef(**{**program, "parents": tuple(program["parents"])})
        if program
        else None,
        block_keys=tuple(bytes.fromhex(key) for key in keys) if keys else None,
        **data,
    )


def encode_slo(slo: SLO) -> list[Any]:
    return [type(slo).__name__, asdict(slo)]


def decode_slo(data: list[Any]) -> SLO:
    name, targets = data
    slo: SLO = _SLOS[name](**targets)
    return slo


def encode_events(events: list[ev.Event]) -> list[list[Any]]:
    """Events as JSON data; requests by id with what the scheduler settled about them."""
    return [_encode(event) for event in events]


def _encode(event: ev.Event) -> list[Any]:
    match event:
        case ev.Arrived(request, now):
            fields: list[Any] = [request.id, encode_slo(request.slo), request.origin, now]
        case ev.Stepped(outcome, now):
            fields = [_encode_outcome(outcome), now]
        case _:
            fields = [getattr(event, name) for name in type(event).__slots__]
    return [type(event).__name__, *fields]


def _encode_outcome(outcome: StepOutcome) -> list[Any]:
    yields = {
        request_id: [getattr(made, name) for name in Yield.__slots__]
        for request_id, made in outcome.yields.items()
        if made.tokens or made.finish
    }
    shape, times = outcome.shape, outcome.times
    return [
        outcome.step,
        outcome.started,
        outcome.ended,
        [getattr(shape, name) for name in BatchShape.__slots__],
        yields,
        [getattr(times, name) for name in StepTimes.__slots__],
    ]


def decode_outcome(data: list[Any]) -> StepOutcome:
    """Undo the encoding of a step; yields without tokens were left out."""
    step, started, ended, shape, yields, times = data
    return StepOutcome(
        step,
        started,
        ended,
        BatchShape(*shape),
        {request_id: _decode_yield(made) for request_id, made in yields.items()},
        StepTimes(*times),
    )


def _decode_yield(data: list[Any]) -> Yield:
    tokens, drafted, selected, accepted, finish, error, logprobs = data
    return Yield(
        tuple(tokens),
        drafted,
        selected,
        accepted,
        finish=FinishReason(finish) if finish else None,
        error=error,
        logprobs=tuple(logprobs) if logprobs else None,
    )


def decode_event(data: list[Any]) -> ev.Event:
    """Decode every event but `Arrived`, whose request only the receiver can look up."""
    name, *fields = data
    match name:
        case "Stepped":
            return ev.Stepped(decode_outcome(fields[0]), fields[1])
        case "Finished":
            request_id, now, reason, message = fields
            return ev.Finished(request_id, now, FinishReason(reason), message)
        case "Rejected":
            request_id, now, reason, retry_after = fields
            return ev.Rejected(request_id, now, Reason(reason), retry_after)
        case "Preempted":
            request_id, now, how = fields
            return ev.Preempted(request_id, now, PreemptHow(how))
        case "Demoted":
            request_id, now, reason = fields
            return ev.Demoted(request_id, now, Reason(reason))
        case "Estimated":
            request_id, lengths, now = fields
            return ev.Estimated(request_id, tuple(lengths), now)
        case _:
            kind: Any = _PLAIN[name]
            event: ev.Event = kind(*fields)
            return event


_PLAIN: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        ev.Admitted,
        ev.Resumed,
        ev.Foretold,
        ev.ProgramOpened,
        ev.ProgramClosed,
    )
}
