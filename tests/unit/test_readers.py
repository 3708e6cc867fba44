"""Reading a trace by its name: which readers there are, what they refuse, and files of rows."""

from __future__ import annotations

import gzip
import re
from dataclasses import replace
from pathlib import Path

import pytest

from giusto.core.errors import ConfigError
from giusto.workload import records
from giusto.workload.readers import READERS, Options, pieces, read
from giusto.workload.readers.tables import Table, json_rows
from giusto.workload.records import Entry, Piece, Step

LENGTHS = "input_tokens,output_tokens\n5,7\n6,3000\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


# Names


def test_a_trace_is_named_by_reader_and_file(tmp_path: Path) -> None:
    """Folders and endings are left out; what the source lacks is said."""
    trace = read(f"sharegpt:{write(tmp_path, 'talk.csv', LENGTHS)}")
    assert (trace.name, trace.is_timed) == ("sharegpt:talk", False)
    assert [entry.id for entry in trace.entries] == ["talk-0", "talk-1"]
    assert [entry.arrival for entry in trace.entries] == [0.0, 0.0]


def test_gzip_and_plain_files_read_alike(tmp_path: Path) -> None:
    """What counts is the content, not the name."""
    plain = read(f"sharegpt:{write(tmp_path, 'a.csv', LENGTHS)}")
    packed = read(f"sharegpt:{write(tmp_path, 'a.csv.gz', LENGTHS)}")
    assert plain == packed


def test_the_page_on_workloads_is_true(tmp_path: Path) -> None:
    """It has a line of use for every reader, and its own records can be read."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "workloads.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([a-z-]+):", page, re.MULTILINE)) == set(READERS)
    path = write(tmp_path, "own.jsonl", page.split("```json\n")[1].split("```")[0])
    assert [entry.waits_for for entry in read(f"jsonl:{path}").entries] == [(), ("read",)]


def test_every_reader_says_where_its_data_come_from() -> None:
    """Source and licence stand in the docstring of all but the project's own form."""
    for name, reader in READERS.items():
        assert name == "jsonl" or "Source" in (reader.entries.__doc__ or ""), name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("azur:x.csv", r"names no reader of adaserve, .*, tau; .* did you mean 'azure'\?"),
        ("zzz:x.csv", r"write reader:path$"),
        ("azure", r"write reader:path, did you mean 'azure'\?"),
        ("azure:nowhere.csv", r"cannot read nowhere.csv: No such file"),
        ("servegen:nowhere.csv#0-60", r"nowhere.csv: expected rates, in a file named …_rates.csv"),
        ("jsonl:nowhere.jsonl", r"cannot read workload nowhere.jsonl"),
        ("azure:x.csv#part", r"x.csv has no parts: leave out '#part'"),
    ],
)
def test_a_wrong_name_says_what_there_is(spec: str, message: str) -> None:
    """Unknown readers list the known ones with the nearest; missing files are named."""
    with pytest.raises(ConfigError, match=message):
        read(spec)


def test_a_file_without_arrivals_is_untimed(tmp_path: Path) -> None:
    """Whether a record has its time is up to the file in the project's own form."""
    path = write(tmp_path, "own.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')
    assert not read(f"jsonl:{path}").is_timed
    path = write(tmp_path, "own.jsonl", '{"prompt": "a"}\n{"prompt": "b", "arrival_s": 1}\n')
    assert read(f"jsonl:{path}", Options(limit=1)).is_timed


def test_a_limit_counts_requests_and_programs(tmp_path: Path) -> None:
    """Calls of a program that is kept stay, wherever they stand in the file."""
    entries = [
        Entry("a", 0.0, prompt_tokens=1, step=Step("p", "1")),
        Entry("b", 1.0, prompt_tokens=1),
        Entry("c", 2.0, prompt_tokens=1),
        Entry("d", 0.0, prompt_tokens=1, step=Step("p", "2", ("1",))),
    ]
    path = tmp_path / "own.jsonl"
    records.write(path, entries)
    assert read(f"jsonl:{path}").entries == entries
    kept = read(f"jsonl:{path}", Options(limit=2)).entries
    assert [entry.id for entry in kept] == ["a", "b", "d"]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"slo_unit": 0.0}, {"max_tokens": 0}])
def test_senseless_options_are_refused(wrong: dict[str, int]) -> None:
    """Each names itself."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(Options(), **wrong)


def test_the_cap_holds_the_whole_class_and_no_single_length(tmp_path: Path) -> None:
    """It is the power of two above the longest answer, or more where more is asked for."""
    spec = f"sharegpt:{write(tmp_path, 'a.csv', LENGTHS)}"
    assert {entry.max_tokens for entry in read(spec).entries} == {4096}
    assert {entry.max_tokens for entry in read(spec, Options(limit=1)).entries} == {4096}
    assert {e.max_tokens for e in read(spec, Options(max_tokens=9000)).entries} == {9000}


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a.csv line 1, column input_tokens: is missing; the file has no header"),
        ("input_tokens,out\n1,2\n", r"line 1, column output_tokens: .* has input_tokens, out$"),
        ("input_tokens,output_tokens\n1,2\n\n3\n", r"a.csv line 4: has 1 cells, the header 2"),
        ("input_tokens,output_tokens\n1,x\n", r"line 2, column output_tokens: .* number, got 'x'"),
        ("input_tokens,output_tokens\n1,nan\n", r"column output_tokens: expected a whole number"),
        ("input_tokens,output_tokens\n1,\n", r"line 2, column output_tokens: is missing"),
        ("input_tokens,output_tokens\n1.5,2\n", r"column input_tokens: expected a whole number"),
        ("input_tokens,output_tokens\n-1,2\n", r"column input_tokens: must be at least 0"),
        ("input_tokens,output_tokens\n", r"a.csv has no requests"),
    ],
)
def test_a_malformed_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """The error names file, line and column."""
    with pytest.raises(ConfigError, match=message):
        read(f"sharegpt:{write(tmp_path, 'a.csv', text)}")


def test_a_cell_beyond_reason_is_refused(tmp_path: Path) -> None:
    """What the CSV parser refuses is an error of the file."""
    path = write(tmp_path, "a.csv", "a\n" + "x" * 200_000 + "\n")
    with pytest.raises(ConfigError, match=r"a.csv line 2: field larger"):
        list(Table(path).rows("a"))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff\xfe", r"not UTF-8"), (gzip.compress(b"a,b\n1,2\n" * 99)[:-20], r"broken gzip")],
)
def test_a_file_that_is_no_text_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    """Broken gzip and other encodings are named as such."""
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read(f"sharegpt:{path}")


def test_a_zero_is_one_token(tmp_path: Path) -> None:
    """A request without prompt or answer cannot be asked."""
    path = write(tmp_path, "a.csv", "input_tokens,output_tokens\n0,0\n")
    (entry,) = read(f"sharegpt:{path}").entries
    assert (entry.prompt_tokens, entry.output_tokens) == (1, 1)


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("ids", "[1, -1]", r"a.jsonl line 2, column x: expected a list of ids"),
        ("ids", "5", r"expected a list of ids, got 5"),
        ("pairs", "[[1, 2, 3]]", r"expected a list of pairs"),
        ("pairs", "[[1, true]]", r"expected a list of pairs"),
        ("amounts", "[1, NaN]", r"expected a list of numbers"),
        ("amounts", "null", r"expected a list of numbers, got None"),
        ("records", "[5]", r"column x: expected an object"),
        ("word", "5", r"expected text"),
        ("word", "null", r"column x: is missing"),
        ("amount", "null", r"column x: is missing"),
        ("tokens", "null", r"column x: is missing"),
    ],
)
def test_a_malformed_value_is_refused(
    method: str, value: str, message: str, tmp_path: Path
) -> None:
    """Each kind of value says what was expected; empty lines count but are skipped."""
    path = write(tmp_path, "a.jsonl", f'\n{{"x": {value}}}\n')
    (row,) = json_rows(path)
    with pytest.raises(ConfigError, match=message):
        getattr(row, method)("x")


# Pieces


def test_blocks_become_pieces_as_far_as_they_are_full() -> None:
    """Consecutive ids are one piece; a last block that is not full is left out."""
    runs = pieces.runs([0, 14, 15, 16, 3])
    assert runs == [(0, 1), (14, 3), (3, 1)]
    assert pieces.from_blocks("s", runs, 512, 4 * 512 + 9) == (
        Piece("s", 0, 512),
        Piece("s", 14 * 512, 3 * 512),
    )
    assert pieces.from_blocks("s", runs, 512, 511) == ()


def test_a_cut_keeps_the_first_tokens() -> None:
    """Pieces beyond the cut go, the one it meets is shortened."""
    whole = (Piece("a", 3, 5), Piece("b", 0, 9))
    assert pieces.cut(whole, 5) == whole[:1]
    assert pieces.cut(whole, 7) == (Piece("a", 3, 5), Piece("b", 0, 2))
    assert pieces.cut(whole, 99) == whole


def test_equal_texts_have_one_name() -> None:
    """Text is told apart by content alone."""
    assert pieces.of_text("hello", 2) == pieces.of_text("hello", 2)
    assert pieces.of_text("hello", 2).source != pieces.of_text("hello!", 2).source
