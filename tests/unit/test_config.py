"""The operator's file becomes settings, or an error that says what to change."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from giusto.config import (
    ApiKey,
    ServerSettings,
    ServiceClass,
    bounds_of,
    digest,
    load,
    read_table,
)
from giusto.core.errors import ConfigError
from giusto.core.slo import BestEffort, Bounds, Deadline, Streaming

EXAMPLE = Path(__file__).parents[2] / "examples" / "giusto.toml"


@pytest.fixture
def read(tmp_path):
    def read(text: str, **environ: str) -> ServerSettings:
        path = tmp_path / "giusto.toml"
        path.write_text(text)
        return load(path, environ).server

    return read


def test_an_empty_file_gives_the_defaults(read):
    assert read("") == ServerSettings()


def test_the_server_listens_on_loopback_by_default():
    assert ServerSettings().host == "127.0.0.1"


def test_the_example_file_is_valid():
    server = load(EXAMPLE, {}).server
    assert server.default_class == "chat"
    assert server.classes["chat"].slo == Streaming(ttft=1.0, tpot=0.15)
    assert server.tiers == {"priority": "interactive", "default": "chat", "flex": "batch"}


def test_classes_hold_targets_in_seconds(read):
    text = """
    [classes.a]
    ttft_ms = 250
    cap_tokens = 64
    weight = 2
    [classes.b]
    deadline_ms = 4000
    program_deadline_ms = 60000
    [classes.c]
    starvation_s = 5
    """
    classes = read(text).classes
    assert (classes["a"].program_deadline, classes["b"].program_deadline) == (None, 60.0)
    assert classes["a"] == ServiceClass("a", Streaming(ttft=0.25), 2.0, 64)
    assert classes["b"].slo == Deadline(4.0)
    assert classes["c"].slo == BestEffort(5.0)


def test_keys_are_kept_as_digests_and_never_shown(read):
    text = """
    [[keys]]
    name = "a"
    key = "sesame"
    [[keys]]
    name = "b"
    key_env = "B_KEY"
    admin = true
    tenant = "shop"
    [[keys]]
    name = "c"
    key_sha256 = "%s"
    """
    server = read(text % hashlib.sha256(b"third").hexdigest(), B_KEY="other")
    assert [key.digest for key in server.keys] == [
        digest("sesame"),
        digest("other"),
        digest("third"),
    ]
    assert [(key.tenant, key.is_admin) for key in server.keys] == [
        ("a", False),
        ("shop", True),
        ("c", False),
    ]
    assert "sesame" not in repr(server)
    assert digest("sesame").hex() not in repr(server)


def test_a_key_may_come_from_the_environment_alone(read):
    (key,) = read("", GIUSTO_API_KEY="sesame").keys
    assert key == ApiKey.of("env", "sesame")


def test_the_tightest_promise_of_a_key_is_a_class_or_targets(read):
    text = """
    [classes.chat]
    ttft_ms = 500
    tpot_ms = 50
    [classes.batch]
    [[keys]]
    name = "a"
    key = "a"
    tightest = "chat"
    [[keys]]
    name = "b"
    key = "b"
    tightest = { deadline_ms = 2000, weight = 3 }
    [[keys]]
    name = "c"
    key = "c"
    tightest = "batch"
    """
    a, b, c = read(text).keys
    assert a.bounds == Bounds(ttft=0.5, tpot=0.05, deadline=0.5, weight=1.0)
    assert b.bounds == Bounds(deadline=2.0, weight=3.0)
    assert c.best_effort_only


@pytest.mark.parametrize(
    ("service", "bounds"),
    [
        (ServiceClass("s", Streaming(ttft=1.0)), Bounds(1.0, 1.0, 1.0, 1.0)),
        (ServiceClass("s", Streaming(tpot=0.1)), Bounds(0.1, 0.1, 0.1, 1.0)),
        (ServiceClass("s", Deadline(4.0), 2.0, 100), Bounds(4.0, 0.04, 4.0, 2.0)),
        (ServiceClass("s", BestEffort(), 0.5), Bounds(weight=0.5)),
    ],
)
def test_a_class_bounds_slos_of_both_kinds(service, bounds):
    assert bounds_of(service) == bounds


def test_the_default_class_is_the_default_tiers_too(read):
    server = read('[server]\ndefault_class = "chat"\n[classes.chat]\nttft_ms = 500')
    assert server.tiers["default"] == "chat"


def test_other_tables_are_handed_on(tmp_path):
    path = tmp_path / "giusto.toml"
    path.write_text("[engine]\nmax_num_seqs = 4")
    assert load(path, {}, tables=("engine",)).tables == {"engine": {"max_num_seqs": 4}}
    with pytest.raises(ConfigError, match=r"unknown table \[engine\]"):
        load(path, {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[server]\nprot = 1", "unknown setting server.prot; did you mean 'port'?"),
        ("[sever]", "unknown table [sever]; did you mean 'server'?"),
        ("[server]\nport = 'x'", "server.port must be int, not str"),
        ("[server]\nport = 70000", "port must lie between 0 and 65535, got 70000"),
        ("[server]\nlog_level = 'loud'", "log_level must be one of critical, error"),
        ("[server]\nport = true", "server.port must be int, not bool"),
        ("[server]\nmax_body_bytes = 3", "max_body_bytes must be at least 1024, got 3"),
        ("[server]\ndrain_timeout_s = -1", "drain_timeout_s must be 0 or more, got -1.0"),
        ("[server]\ndefault_class = 'chat'", "no class 'chat'"),
        ("[server]\nkeys = []", "server.keys has a table of its own: [keys]"),
        ("[tiers]\nflex = 'nope'", "tiers.flex: no class 'nope'"),
        ("[tiers]\nprio = 'flex'", "unknown tiers.prio; did you mean 'priority'?"),
        ("[classes.a]\nttft = 5", "classes.a.ttft; did you mean 'ttft_ms'?"),
        ("[classes.a]\nttft_ms = 5\ndeadline_ms = 5", "a deadline excludes ttft and tpot"),
        ("[classes.a]\nprogram_deadline_ms = 0", "program_deadline_ms must be a positive number"),
        ("[classes.a]\nttft_ms = -5", "ttft must be a positive, finite number"),
        ("[classes.a]\nttft_ms = nan", "ttft must be a positive, finite number"),
        ("[classes.a]\ncap_tokens = 0", "classes.a needs weight >= 0 and cap_tokens >= 1"),
        ("[[keys]]\nkey = 'x'", "keys[0].name is missing"),
        ("[[keys]]\nname = 'a'", "needs exactly one of key, key_env and key_sha256"),
        ("[[keys]]\nname = 'a'\nkey = ''", "needs exactly one of key"),
        ("[[keys]]\nname = 'a'\nkey_env = 'NOPE'", "the variable NOPE is not set"),
        ("[[keys]]\nname = 'a'\nkey_sha256 = 'zz'", "must be 64 hexadecimal digits"),
        ("[[keys]]\nname='a'\nkey='1'\n[[keys]]\nname='a'\nkey='2'", "the same name"),
        ("[[keys]]\nname='a'\nkey='1'\ntightest='x'", "keys[0].tightest: no class 'x'"),
        ("[[keys]]\nname='a'\nkey='1'\ntightest={ttft_ms=-1}", "bounds must be numbers"),
        ("[[keys]]\nname='a'\nkey='1'\ndefault_class='x'", "default_class of key a: no class"),
        ("[[keys]]\nname='a/b'\nkey='1'", "must not be empty or hold '/'"),
        ("[keys]", "keys must be [[keys]]"),
        ("server = 5", "server must be a table"),
        ("[server", "is not valid TOML"),
    ],
)
def test_mistakes_are_named(read, text, complaint):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert complaint in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.toml"):
        load(tmp_path / "nope.toml", {})


def test_a_secret_of_the_wrong_type_is_not_shown(read):
    with pytest.raises(ConfigError) as caught:
        read("[[keys]]\nname = 'a'\nkey = 987654321")
    assert "987654321" not in str(caught.value)


def test_lists_become_tuples():
    table = {"served_model_names": ["a", "b"]}
    assert read_table(ServerSettings, table, "server").served_model_names == ("a", "b")
    with pytest.raises(ConfigError, match=r"served_model_names must be str, not int"):
        read_table(ServerSettings, {"served_model_names": [1]}, "server")
