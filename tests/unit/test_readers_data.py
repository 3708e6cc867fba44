"""The readers on the published traces themselves."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from giusto.core.errors import ConfigError
from giusto.workload import records
from giusto.workload.readers import Options, Trace, read
from giusto.workload.records import Entry, Piece

OPTIONS = Options(slo_unit=0.03)

#: reader, file: entries, programs.
WHOLE = {
    "azure:traces/azure2023_conv.csv.gz": (14_176, 0),
    "azure:traces/azure2023_code.csv.gz": (7_491, 0),
    "lmsys:traces/lmsys_arena_clients.csv.gz": (1_500, 0),
    "mooncake:traces/mooncake_conversation.jsonl.gz": (7_851, 0),
    "sharegpt:traces/sharegpt_lengths.csv.gz": (66_224, 0),
    "sharegpt:traces/arxiv_summarization_lengths.csv.gz": (22_606, 0),
    "adaserve:traces/adaserve_slo_mix.csv.gz#fig8-9_rps3.2_ol256": (1_200, 0),
    "adaserve:traces/adaserve_slo_mix.csv.gz#fig10_rps4.0_prop0.6": (1_400, 0),
    "claude-code:programs/claude_code_sessions.jsonl.gz": (33_033, 515),
    "mini-swe:programs/mini_swe_agent_text.jsonl.gz": (291, 15),
    "magentic:programs/magentic_one_lengths.jsonl.gz": (560, 19),
    "tau:programs/tau_airline_text.jsonl.gz": (2_114, 152),
    "otel:programs/otel_dag_examples.jsonl.gz": (73, 9),
}


def load(data: Path, spec: str, options: Options = OPTIONS) -> Trace:
    reader, _, name = spec.partition(":")
    return read(f"{reader}:{data / name}", options)


def programs(entries: list[Entry]) -> dict[str, list[Entry]]:
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.step is not None:
            by_name.setdefault(entry.step.program, []).append(entry)
    return by_name


def shared(one: tuple[Piece, ...], other: tuple[Piece, ...]) -> int:
    """Tokens that two prompts have in common at their start, by their pieces."""
    tokens = 0
    for a, b in zip(one, other, strict=False):
        if (a.source, a.start) != (b.source, b.start):
            break
        tokens += min(a.tokens, b.tokens)
        if a.tokens != b.tokens:
            break
    return tokens


@pytest.mark.parametrize("spec", WHOLE)
def test_a_file_is_read_whole(spec: str, shared_data: Path, tmp_path: Path) -> None:
    """It has as many requests and programs as its description says, and survives being written.

    Answers fit under the cap, and pieces into the prompt.
    """
    entries = load(shared_data, spec).entries
    assert (len(entries), len(programs(entries))) == WHOLE[spec]
    assert len({entry.id for entry in entries}) == len(entries)
    for entry in entries:
        assert (entry.output_tokens or 1) <= entry.max_tokens
        assert sum(piece.tokens for piece in entry.pieces) <= (entry.prompt_tokens or 0)
    some = load(shared_data, spec, Options(slo_unit=0.025, limit=200)).entries
    records.write(tmp_path / "again.jsonl", some)
    assert records.read(tmp_path / "again.jsonl") == some


def test_adaserve_has_its_classes(shared_data: Path) -> None:
    """60 % code, 20 % chat, 20 % summaries; an unknown trace lists the 19 that there are."""
    spec = "adaserve:traces/adaserve_slo_mix.csv.gz"
    entries = load(shared_data, f"{spec}#fig8-9_rps3.2_ol256").entries
    count = Counter(entry.service_class for entry in entries)
    shares = [count[name] / len(entries) for name in ("code", "chat", "summarise")]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.02)
    with pytest.raises(ConfigError) as caught:
        load(shared_data, f"{spec}#fig8")
    assert str(caught.value).count("fig") == 20


def test_mooncake_prompts_share_their_blocks(shared_data: Path) -> None:
    """All begin with one of few blocks, and name all but the last of theirs."""
    entries = load(shared_data, "mooncake:traces/mooncake_conversation.jsonl.gz").entries
    for entry in entries:
        named = sum(piece.tokens for piece in entry.pieces)
        assert named == (entry.prompt_tokens or 0) // 512 * 512
    first = Counter((entry.pieces[0].source, entry.pieces[0].start) for entry in entries)
    assert first.most_common(1)[0][1] > len(entries) / 2


def test_coding_sessions_grow(shared_data: Path) -> None:
    """Most calls begin with nearly all that the call before them had."""
    entries = load(shared_data, "claude-code:programs/claude_code_sessions.jsonl.gz").entries
    growing = calls = 0
    for program in programs(entries).values():
        for before, after in pairwise(program):
            named = sum(piece.tokens for piece in before.pieces)
            growing += shared(before.pieces, after.pieces) > 0.9 * named
            calls += 1
    assert growing / calls > 0.75
    ends = Counter(entry.step.program for entry in entries if entry.step and entry.step.is_final)
    assert set(ends.values()) == {1}
    assert len(ends) == 513


@pytest.mark.parametrize(
    "spec",
    ["mini-swe:programs/mini_swe_agent_text.jsonl.gz", "tau:programs/tau_airline_text.jsonl.gz"],
)
def test_histories_are_kept_whole(spec: str, shared_data: Path) -> None:
    """Each call begins with the whole prompt of the one before it."""
    for program in programs(load(shared_data, spec).entries).values():
        for before, after in pairwise(program):
            assert after.pieces[: len(before.pieces)] == before.pieces
            assert sum(piece.tokens for piece in before.pieces) == before.prompt_tokens


def test_dialogues_share_their_policy(shared_data: Path) -> None:
    """The system prompt is one text, and later prompts quote earlier answers."""
    entries = load(shared_data, "tau:programs/tau_airline_text.jsonl.gz").entries
    assert {(entry.pieces[0].source, entry.pieces[0].tokens) for entry in entries} == {
        (entries[0].pieces[0].source, 1338)
    }
    by_id = {entry.id: entry for entry in entries}
    quoted = [piece for entry in entries for piece in entry.pieces if piece.source in by_id]
    assert len(quoted) > len(entries)
    assert all(piece.tokens == by_id[piece.source].output_tokens for piece in quoted)


@pytest.mark.parametrize(
    ("model", "window", "count"),
    [("deepseek-r1", "0-3600", 69_511), ("m-large", "86400-87000", 47_611)],
)
def test_servegen_draws_the_recorded_load(
    model: str, window: str, count: int, shared_data: Path
) -> None:
    """The clients that have lengths make as many requests as recorded, each seed its own."""
    spec = f"servegen:traces/servegen_{model}_rates.csv.gz#{window}"
    entries = load(shared_data, spec).entries
    assert len(entries) == count
    again = load(shared_data, spec, Options(limit=50)).entries
    assert again == entries[:50]
    assert load(shared_data, spec, Options(seed=1, limit=50)).entries != again
