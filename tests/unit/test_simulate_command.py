"""`giusto simulate` and `giusto sweep`: tables, files, options, and what is refused how."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from giusto import cli
from giusto.commands.simulate import policy_of, rates_of
from giusto.commands.table import COLUMNS, policies_table
from giusto.core.errors import ConfigError
from giusto.policies import REGISTRY
from giusto.profiles import profile as profiles
from giusto.workload import mix, records
from simulated import PROFILE, entry, load

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def invoke(command: str, *words: object) -> Result:
    return CliRunner().invoke(cli.app, [command, *map(str, words)], env=WIDE)


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "load.jsonl"
    records.write(path, load(12, seed=1))
    return path


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    PROFILE.write(path)
    return path


def simulate(*words: object) -> Result:
    result = invoke("simulate", *words, "--jobs", 1)
    assert result.exit_code == 0, result.output
    return result


def refusal(command: str, *words: object) -> str:
    """What is said when it is refused: one line on stderr, exit code 2, no table."""
    result = invoke(command, *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"giusto {command}: "), result.stderr
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def text(shown: RenderableType) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(shown)
    return console.export_text()


def runs_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return found


# Tables and files


def test_a_table_with_a_row_per_policy(workload: Path, machine: Path) -> None:
    """Every column stands in the head, every policy in a row of its own."""
    words = ("--workload", workload, "--profile", machine, "--policy", "fcfs,edf", "--check")
    shown = simulate(*words).stdout
    head = next(line for line in shown.splitlines() if "policy" in line)
    for name in ("policy", "rate", *COLUMNS):
        assert name in head
    rows = [line.split() for line in shown.splitlines()]
    assert {row[0] for row in rows if row and row[0] in REGISTRY} == {"fcfs", "edf"}
    assert re.search(r"fcfs +own +\d+\.\d% +\d+\.\d% ", shown)
    assert "load.jsonl on tiny" in shown


def test_a_result_file(workload: Path, machine: Path, tmp_path: Path) -> None:
    """`--json` has a run per policy, rate and seed, with settings and figures."""
    out = tmp_path / "out.json"
    words = ("--workload", workload, "--profile", machine, "--policy", "fcfs,sjf")
    result = simulate(*words, "--request-rate", "2,4", "--seed", "1,2", "--json", out)
    assert str(out) in result.stderr
    made = runs_of(out)
    keys = [(run["policy"], run["request_rate"], run["seed"]) for run in made]
    assert keys == [(p, r, s) for p in ("fcfs", "sjf") for r in (2.0, 4.0) for s in (1, 2)]
    for run in made:
        assert run["backend"] == "simulator"
        assert run["num_prompts"] == run["offered"] + 2 * 3  # a program counts once
        assert run["completed"] == run["num_prompts"]
        assert run["distributions"]
        assert run["timeline"]


def test_several_seeds_are_averaged(workload: Path, machine: Path) -> None:
    """One row per policy with the span between seeds, and a note on it."""
    words = ("--workload", workload, "--profile", machine, "--policy", "fcfs")
    shown = simulate(*words, "--request-rate", 20, "--seed", "1,2,3").stdout
    assert "Means over 3 seeds" in shown
    assert sum(line.split()[:1] == ["fcfs"] for line in shown.splitlines()) == 1
    assert "±" in shown


def test_a_class_that_only_one_seed_saw_has_its_column() -> None:
    """Whichever run saw it; its mean is over the runs that did."""

    def run(seed: int, **kept: float) -> dict[str, Any]:
        by_class = {name: {"attainment": share} for name, share in kept.items()}
        names = ("attainment", "service_gain_ratio", "slo_request_goodput")
        times = ("p95_ttft_offered_ms", "median_tpot_ms", "p99_itl_ms", "p95_e2el_offered_ms")
        figures = dict.fromkeys((*names, *times), 0.5)
        about = {"workload": "w", "profile": "p", "replicas": 1, "policy": "fcfs"}
        return {**about, "request_rate": 1.0, "seed": seed, **figures, "by_class": by_class}

    shown = text(policies_table([run(1, chat=0.25), run(2, chat=0.75, tool=1.0)]))
    assert "tool" in shown
    assert "100.0%" in shown
    assert "50.0 ±25.0%" in shown


def test_what_never_answered_is_infinite(tmp_path: Path, machine: Path) -> None:
    """A request larger than the cache is refused at the door and missed: the tail says so."""
    path, out = tmp_path / "huge.jsonl", tmp_path / "out.json"
    records.write(path, [entry("huge", prompt=16 * PROFILE.num_blocks), entry("a", 0.5)])
    words = ("--workload", path, "--profile", machine, "--policy", "fcfs", "--json", out)
    shown = simulate(*words).stdout
    (run,) = runs_of(out)
    assert (run["offered"], run["attained"], run["refused"]) == (2, 1, 1)
    assert run["errors"] == {"too_large": 1}
    assert run["p95_ttft_offered_ms"] is None
    assert "50.0%" in shown
    assert "∞" in shown


def test_the_same_command_writes_the_same_bytes(
    workload: Path, machine: Path, tmp_path: Path
) -> None:
    """Twice in this process."""
    texts = []
    for name in "ab":
        out = tmp_path / f"{name}.json"
        words = ("--workload", workload, "--profile", machine, "--policy", "giusto,edf-shed")
        simulate(*words, "--request-rate", 20, "--replicas", 2, "--lookahead", 1, "--json", out)
        texts.append(out.read_bytes())
    assert texts[0] == texts[1]


def test_a_sweep_goes_on_where_it_stopped(workload: Path, machine: Path, tmp_path: Path) -> None:
    """What the file has is not run again; a larger sweep adds to it."""
    out = tmp_path / "sweep.json"
    words = ("--workload", workload, "--profile", machine, "--policy", "fcfs", "--json", out)
    first = invoke("sweep", *words, "--request-rate", "2,4", "--jobs", 1)
    assert first.exit_code == 0, first.output
    second = invoke("sweep", *words, "--request-rate", "2:6:3", "--jobs", 1)
    assert second.exit_code == 0, second.output
    assert "2 of 3 runs are in the file." in second.stderr
    assert [run["request_rate"] for run in runs_of(out)] == [2.0, 4.0, 6.0]
    third = invoke("sweep", *words, "--request-rate", "2:6:3", "--jobs", 1)
    assert "3 of 3 runs are in the file." in third.stderr
    assert re.search(r"fcfs +6 ", third.stdout)


# Options


def test_options_of_a_policy(workload: Path, machine: Path, tmp_path: Path) -> None:
    """They stand in the label and change what happens."""
    out = tmp_path / "out.json"
    words = ("--workload", workload, "--profile", machine, "--json", out, "--request-rate", 20)
    simulate(*words, "--policy", "sarathi:chunk_tokens=16,sarathi:chunk_tokens=128")
    small, large = runs_of(out)
    assert small["policy"] == "sarathi:chunk_tokens=16"
    assert small["num_steps"] > large["num_steps"]
    assert policy_of("a:b=1+c=d=e") == ("a", {"b": "1", "c": "d=e"})


POLICY = '''
"""Last come, first served."""
from dataclasses import dataclass
from giusto.core.pack import pack
from giusto.core.plan import Want
@dataclass(frozen=True, slots=True)
class Parameters:
    """Nothing to set."""
class Stack:
    def plan(self, view):
        newest = sorted(view.waiting, key=lambda request: -request.arrival)
        return pack([Want(r.id) for r in (*view.running, *newest)], view)
    def observe(self, event):
        """Nothing to learn."""
def make(parameters, deps):
    return Stack()
'''


def test_a_policy_from_a_file(workload: Path, machine: Path, tmp_path: Path) -> None:
    """Ten lines of one's own stand beside the built-in ones, in another process too."""
    path, out = tmp_path / "stack.py", tmp_path / "out.json"
    path.write_text(POLICY)
    words = ("--workload", workload, "--profile", machine, "--check", "--json", out)
    result = invoke("simulate", *words, "--policy", f"fcfs,{path}", "--jobs", 2)
    assert result.exit_code == 0, result.output
    assert [run["policy"] for run in runs_of(out)] == ["fcfs", str(path)]
    assert all(run["completed"] == run["num_prompts"] for run in runs_of(out))


def test_classes_of_the_operators_file(workload: Path, machine: Path, tmp_path: Path) -> None:
    """Weights count in the gain, promises are judged, and the run says what it was made with."""
    config, out = tmp_path / "giusto.toml", tmp_path / "out.json"
    config.write_text("[classes.default]\nweight = 3.0\n")
    words = ("--workload", workload, "--profile", machine, "--policy", "fcfs", "--json", out)
    gains = []
    for more in ((), ("--config", config)):
        simulate(*words, *more)
        gains.append(runs_of(out)[0]["service_gain_possible"])
    assert gains[1] == pytest.approx(3 * gains[0])
    assert "weight=3.0" in runs_of(out)[0]["classes"]["default"]
    config.write_text("[classes.default]\nttft_ms = 0.001\n")
    simulate(*words, "--config", config)
    assert runs_of(out)[0]["attainment"] < 1


def test_rates() -> None:
    """Several with commas, or evenly spaced from, to and count."""
    assert rates_of(None) == [None]
    assert rates_of("1, 2.5") == [1.0, 2.5]
    assert rates_of("0.4:2:5") == [0.4, 0.8, 1.2, 1.6, 2.0]
    assert rates_of("2:1:2") == [2.0, 1.0]


@pytest.mark.parametrize("text", ["", ",", "x", "0", "-1", "inf", "nan", "1:2:1", "1:2:2.5", "1:2"])
def test_rates_that_are_none(text: str) -> None:
    """Refused in the flag's name."""
    with pytest.raises(ConfigError, match="--request-rate"):
        rates_of(text)


# Refusals


def test_unknown_names_list_what_exists(workload: Path) -> None:
    """Policies, profiles, workloads and routers."""
    words = ("--workload", workload)
    said = refusal("simulate", *words, "--policy", "fcsf")
    assert "did you mean fcfs?" in said
    assert all(name in said for name in REGISTRY)
    said = refusal("simulate", *words, "--profile", "h100")
    assert all(name in said for name in profiles.names())
    said = refusal("simulate", "--workload", "chatt")
    assert "did you mean 'chat'" in said
    assert all(name in said for name in (*mix.MIXES, "azure", "mooncake"))
    said = refusal("simulate", *words, "--router", "best", "--replicas", 2)
    assert "round-robin, least-loaded, locality" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt_tokens": 0}', "bad.jsonl line 2, column prompt_tokens: must be at least 1"),
        ('{"prompt_tokens": 9, "sloo": {}}', "bad.jsonl line 2, column sloo: unknown column"),
        ('{"prompt_tokens": 9, "slo": {"ttft_ms": "x"}}', "line 2, column slo.ttft_ms: expected"),
        ('{"prompt_tokens": 9', "bad.jsonl line 2, column"),
        ('{"output_tokens": 9}', "line 2, column messages: give messages, prompt or prompt_tokens"),
        ('{"prompt": "Hello", "id": "x"}', "entry x has a text but no prompt_tokens"),
    ],
)
def test_malformed_records_name_file_line_and_field(tmp_path: Path, line: str, said: str) -> None:
    """One sentence, no traceback."""
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"prompt_tokens": 5}}\n{line}\n')
    assert said in refusal("simulate", "--workload", path, "--policy", "fcfs")


def test_a_trace_without_its_column(tmp_path: Path) -> None:
    """A reader says which column is missing where."""
    path = tmp_path / "trace.csv"
    path.write_text("t_s,context_tokens\n0,4\n")
    said = refusal("simulate", "--workload", f"azure:{path}", "--policy", "fcfs")
    assert "trace.csv" in said
    assert "generated_tokens" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "fcfs:bogus=1"], "policy fcfs has no option 'bogus'"),
        (["--policy", "sarathi:chunk_tokens"], "give options as name:option=value"),
        (["--policy", ","], "--policy needs at least one value"),
        (["--policy", "missing.py"], "there is no file missing.py"),
        (["--seed", "one"], "--seed 'one': give whole numbers"),
        (["--answers", "x"], "--answers 'x': give SHARE or SHARE:SHAPE"),
        (["--answers", "2"], "a share from 0 to 1"),
        (["--arrivals", "sometimes"], "poisson"),
        (["--speed", "0"], "speed must be above 0"),
        (["--speed", "nan"], "speed must be above 0"),
        (["--duration", "0"], "duration must be above 0"),
        (["--duration", "inf"], "finite"),
    ],
)
def test_bad_options(words: list[str], said: str) -> None:
    """Each in one sentence that names what was wrong."""
    given = words if "--policy" in words else [*words, "--policy", "fcfs"]
    assert said in refusal("simulate", "--workload", "chat", *given, "--jobs", 1)


def test_flags_have_bounds() -> None:
    """Counts below one are refused by the command line itself."""
    for flag in ("--replicas", "--jobs", "--num-prompts", "--max-num-seqs"):
        result = invoke("simulate", flag, 0)
        assert result.exit_code == 2
        assert flag in result.output


def test_a_sweep_needs_rates_and_a_file() -> None:
    """It says which flag is missing."""
    for given, missing in ((("--json", "x.json"), "--request-rate"), ((), "--json")):
        result = invoke("sweep", *given)
        assert result.exit_code == 2
        assert missing in result.output


# Base dependencies

SCRIPT = """
import sys
HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "httpx", "matplotlib", "sklearn", "gguf")
for heavy in HEAVY:
    sys.modules[heavy] = None
sys.argv = ["giusto", *sys.argv[1:]]
from giusto.cli import app
app(standalone_mode=False)
"""


@pytest.mark.parametrize("command", ["simulate", "sweep"])
def test_no_heavy_library_is_needed(
    command: str, workload: Path, machine: Path, tmp_path: Path
) -> None:
    """With torch, the server's and the report's libraries out of reach it runs all the same."""
    out = tmp_path / "out.json"
    policies = ",".join(REGISTRY)
    words = ["--workload", workload, "--profile", machine, "--policy", policies]
    words += ["--request-rate", 4, "--json", out, "--jobs", 1]
    python = [sys.executable, "-W", "error", "-c", SCRIPT]
    done = subprocess.run(
        [*python, command, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [run["policy"] for run in runs_of(out)] == list(REGISTRY)
