"""The command line: help, sizes and options, how flags, file and defaults merge, and refusals."""

from __future__ import annotations

import inspect
import os

import pytest
from typer.testing import CliRunner

from giusto import __version__, build, cli
from giusto.commands.sizes import parse_bytes
from giusto.core.errors import ConfigError
from giusto.policies import REGISTRY
from giusto.server import app as server_app

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def run(*words: str, **env: str):
    return CliRunner().invoke(cli.app, list(words), env=WIDE | env)


@pytest.fixture
def settings(monkeypatch):
    """Run `giusto serve` up to the point where it would serve; gives its settings."""
    monkeypatch.delenv("GIUSTO_API_KEY", raising=False)
    seen = []
    monkeypatch.setattr(cli, "_serve", lambda server, engine: seen.append((server, engine)))

    def of(*words: str, **env: str):
        seen.clear()
        result = run("serve", *words, **env)
        assert result.exit_code == 0, result.output
        return seen[0]

    return of


def refusal(*words: str) -> str:
    """What `giusto serve` says when it refuses: one line, exit code 2, no traceback."""
    result = run("serve", *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("giusto serve: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


# Help and lists


def test_help_names_the_commands():
    """`giusto --help` lists serve, policies and bench; without words it shows the same."""
    result = run("--help")
    assert result.exit_code == 0
    for name in ("serve", "policies", "bench"):
        assert name in result.output
    assert "serve" in run().output


def test_version():
    """`giusto --version` prints the version and nothing else."""
    assert run("--version").output == f"{__version__}\n"


def test_serve_help_lists_the_flags_that_users_of_vllm_expect():
    """Every parameter of `serve` is a documented flag."""
    result = run("serve", "--help")
    assert result.exit_code == 0
    for name in inspect.signature(cli.serve).parameters:
        assert f"--{name.replace('_', '-')}" in result.output


def test_policies_are_listed_with_their_options():
    """`giusto policies` shows every policy, the default, and each option's default value."""
    result = run("policies")
    assert result.exit_code == 0
    for name, module in REGISTRY.items():
        assert name in result.output
        for option in inspect.signature(module.Parameters).parameters.values():
            assert f"{option.name}={option.default}" in result.output
    assert "giusto (default)" in result.output


# Sizes and options


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1000", 1000),
        ("1e3", 1000),
        ("5b", 5),
        ("2k", 2048),
        ("2KB", 2048),
        ("2KiB", 2048),
        ("512M", 512 << 20),
        ("512 m", 512 << 20),
        ("1.5GiB", 3 << 29),
        (" 2G ", 2 << 30),
        ("0.5t", 1 << 39),
    ],
)
def test_sizes(text, size):
    """Bytes, or binary units with or without `B` and `iB`, in any case."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "g",
        "0",
        "-1",
        "-2G",
        "0.2",
        "nan",
        "inf",
        "1e999",
        "2X",
        "2GG",
        "two",
        "G2",
        "1,5G",
    ],
)
def test_what_is_no_size(text):
    """Anything else is refused with an example of what is right."""
    with pytest.raises(ConfigError, match="give bytes, or 512M, 2G"):
        parse_bytes(text)


def test_policy_options_are_name_and_value():
    """`name=value` words become a table; the value may hold an equals sign."""
    assert cli.parse_options(["a=1", " b = c=d "]) == {"a": "1", "b": "c=d"}
    with pytest.raises(ConfigError, match="give name=value"):
        cli.parse_options(["alone"])


# Merging

FILE = """
[server]
port = 9001
host = "0.0.0.0"
max_num_queued_reqs = 7

[engine]
max_num_seqs = 11
block_size = 32
kv_cache_memory = 1048576
prefix_caching = false

[policy]
name = "edf"

[classes.chat]
ttft_ms = 500
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "giusto.toml"
    path.write_text(FILE)
    return str(path)


def test_defaults(settings):
    """Without flags or file the server is on loopback and the default policy plans."""
    server, engine = settings()
    assert (server.host, server.port, server.keys) == ("127.0.0.1", 8000, ())
    assert (engine.model, engine.scheduling_policy, engine.max_num_seqs) == (None, "giusto", 128)
    assert engine.prefix_caching
    assert engine.max_num_queued_reqs == server.max_num_queued_reqs == 1024


def test_the_file_wins_over_defaults(settings, file):
    """What the file says replaces the defaults; what both halves need reaches both."""
    server, engine = settings("--config", file)
    assert (server.port, server.host) == (9001, "0.0.0.0")
    assert (engine.max_num_seqs, engine.block_size) == (11, 32)
    assert engine.max_num_batched_tokens == 512
    assert engine.scheduling_policy == "edf"
    assert not engine.prefix_caching
    assert engine.max_num_queued_reqs == server.max_num_queued_reqs == 7
    assert "chat" in server.classes


def test_flags_win_over_the_file(settings, file):
    """A flag replaces what the file says, and only that."""
    server, engine = settings(
        *("--config", file, "--port", "9002", "--max-num-seqs", "3", "--kv-cache-memory", "2M"),
        *("--scheduling-policy", "fcfs", "--enable-prefix-caching", "--max-num-queued-reqs", "9"),
    )
    assert (server.port, server.host) == (9002, "0.0.0.0")
    assert (engine.max_num_seqs, engine.block_size) == (3, 32)
    assert engine.kv_cache_memory == 2 << 20
    assert engine.scheduling_policy == "fcfs"
    assert engine.prefix_caching
    assert engine.max_num_queued_reqs == server.max_num_queued_reqs == 9


def test_every_flag_arrives(settings):
    """No flag is dropped on its way to the settings."""
    server, engine = settings(
        *("--model", "m", "--served-model-name", "a", "--served-model-name", "b"),
        *("--host", "::1", "--port", "0", "--scheduling-policy", "giusto"),
        *("--max-model-len", "99", "--max-num-seqs", "5", "--max-num-batched-tokens", "6"),
        *("--kv-cache-memory", "1M", "--block-size", "8", "--no-enable-prefix-caching"),
        *("--dtype", "float32", "--device", "cpu", "--max-num-queued-tokens", "77"),
        *("--allowed-origins", "http://x", "--root-path", "/r", "--vllm-metrics", "--check"),
        *("--seed", "4", "--log-level", "error"),
    )
    assert server.served_model_names == ("a", "b")
    assert (server.host, server.port, server.root_path) == ("::1", 0, "/r")
    assert server.allowed_origins == ("http://x",)
    assert server.vllm_metrics
    assert (engine.model, engine.max_model_len, engine.max_num_seqs) == ("m", 99, 5)
    assert (engine.max_num_batched_tokens, engine.kv_cache_memory) == (6, 1 << 20)
    assert (engine.block_size, engine.prefix_caching) == (8, False)
    assert (engine.dtype, engine.device, engine.check, engine.seed) == ("float32", "cpu", True, 4)
    assert engine.max_num_queued_tokens == server.max_num_queued_tokens == 77
    assert engine.log_level == server.log_level == "error"


def test_a_key_comes_from_flag_or_variable(settings):
    """A key given by either way is asked of clients, and only its digest is kept."""
    for server, _ in (settings("--api-key", "s3"), settings(GIUSTO_API_KEY="s3")):
        assert [key.name for key in server.keys] == ["env"]
        assert "s3" not in repr(server)
    assert settings(GIUSTO_API_KEY="")[0].keys == ()


# Refusals


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scheduling-policy", "gusto"), "did you mean giusto?"),
        (("--policy-option", "alone"), "give name=value"),
        (("--policy-option", "nosuch=1"), "no option 'nosuch'"),
        (("--kv-cache-memory", "much"), "cannot read the size 'much'"),
        (("--log-level", "loud"), "log_level must be one of"),
        (("--config", "/nonexistent.toml"), "cannot read /nonexistent.toml"),
        (("--dtype", "float99"), "dtype"),
        (("--device", "tpu9"), "device"),
    ],
)
def test_what_cannot_be_honoured_is_one_sentence(words, said):
    """Each mistake on the command line ends with exit code 2 and a sentence that names it."""
    assert said in refusal(*words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 1", "unknown table [port]"),
        ("[engine]\nblok_size = 1", "did you mean 'block_size'"),
        ("[engine]\nblock_size = 0", "block_size"),
        ("[engine]\nmax_num_seqs = -1", "max_num_seqs"),
        ("[engine]\nmax_num_batched_tokens = 0", "max_num_batched_tokens"),
        ("[engine]\nkv_cache_memory = -5", "kv_cache_memory"),
        ('[engine]\nkv_cache_memory = "2G"', "kv_cache_memory"),
        ("[engine]\nprogram_idle_timeout = -1.0", "program_idle_timeout"),
        ("[engine]\nmax_num_queued_reqs = 5", "[server]"),
        ("[server]\nmax_num_queued_reqs = 0", "max_num_queued_reqs"),
        ('[policy]\nname = "nosuch"', "unknown scheduling policy 'nosuch'"),
        ("[[server]]\nport = 1", "server must be a table"),
        ("not toml", "is not valid TOML"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, said):
    """Each mistake in the file ends with exit code 2 and a sentence that names it."""
    path = tmp_path / "bad.toml"
    path.write_text(text)
    assert said in refusal("--config", str(path))


@pytest.mark.parametrize(
    "words",
    [
        ("--max-num-seqs", "0"),
        ("--port", "70000"),
        ("--block-size", "0"),
        ("--max-model-len", "1"),
        ("--nosuch",),
        ("--port", "x"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(words):
    """The parser itself refuses impossible numbers, with exit code 2."""
    assert run("serve", *words).exit_code == 2


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    """`giusto serve --model` of nothing says so and what can be given instead."""
    result = run("serve", "--model", str(tmp_path / "nonexistent"), "--port", "0")
    assert result.exit_code == 2
    last = result.stderr.strip().split("\n")[-1]
    assert last.startswith("giusto serve: ")
    assert "nonexistent does not exist; give a model folder, a .gguf file or a hub id" in last
    assert "Traceback" not in result.output


def test_a_missing_library_is_one_sentence(monkeypatch):
    """Without the serving libraries the command says what to install."""

    def missing(*_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(build, "backend", missing)
    assert "torch is missing: pip install 'giusto[serve]'" in refusal()


def test_a_taken_port_is_one_sentence(monkeypatch):
    """An error of the system is told in its own words, with exit code 1."""

    def taken(*_, **__):
        raise OSError(98, os.strerror(98))

    monkeypatch.setattr(build, "backend", lambda *_: None)
    monkeypatch.setattr(server_app, "serve", taken)
    result = run("serve")
    assert result.exit_code == 1
    assert os.strerror(98) in result.stderr
    assert "Traceback" not in result.output
