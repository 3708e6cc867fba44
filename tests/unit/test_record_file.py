"""Records on disk: complete lines as they come, plain or packed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from giusto.core.request import FinishReason
from giusto.core.slo import BestEffort, Deadline, Program, Streaming
from giusto.metrics.record_file import RecordFile, to_json
from giusto.metrics.records import ProgramCall, Record


def record(name: str, **more: object) -> Record:
    fields = {
        "group": name,
        "service_class": "chat",
        "slo": BestEffort(),
        "arrival": 1.0,
        "origin": 1.0,
        "prompt_tokens": 7,
    }
    return Record(id=name, **(fields | more))


def test_a_line_holds_what_the_record_has() -> None:
    """Times in seconds to the microsecond; what is not there is left out."""
    row = to_json(
        record(
            "a",
            slo=Streaming(0.5, 0.05),
            token_times=(1.1234567, 1.2),
            closed=1.2,
            finish=FinishReason.STOP,
            admitted=1.05,
            program=ProgramCall("p", "a", 0.5, 9.0),
        )
    )
    assert row == {
        "id": "a",
        "class": "chat",
        "slo": {"kind": "streaming", "ttft_s": 0.5, "tpot_s": 0.05},
        "arrival_s": 1.0,
        "admitted_s": 1.05,
        "closed_s": 1.2,
        "prompt_tokens": 7,
        "token_times_s": [1.123457, 1.2],
        "finish": "stop",
        "program": {"id": "p", "call": "a", "opened_s": 0.5, "deadline_s": 9.0},
    }
    assert to_json(record("b", slo=Deadline(2.0)))["slo"] == {"kind": "deadline", "deadline_s": 2.0}
    assert to_json(record("c", slo=Program(3.0)))["slo"] == {"kind": "program", "deadline_s": 3.0}
    refused = to_json(record("d", refused="queue_full", group="g", tenant="t", weight=2.0))
    assert (refused["refused"], refused["group"]) == ("queue_full", "g")
    assert (refused["tenant"], refused["weight"]) == ("t", 2.0)


def test_files_are_plain_or_packed_by_their_name(tmp_path: Path) -> None:
    """One object per line either way, in folders that need not exist."""
    for name, unpack in (("r.jsonl", lambda raw: raw), ("r.jsonl.gz", gzip.decompress)):
        path = tmp_path / "new" / name
        with RecordFile(path) as file:
            file.write([record("a")])
            file.write([record("b"), record("c")])
        lines = unpack(path.read_bytes()).decode().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c"]
