"""How much KV memory is taken, how long a request may be, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch

from giusto.core.errors import ConfigError
from giusto.engine import memory
from giusto.engine.config import parse_config
from giusto.engine.memory import Capacity, plan_capacity
from tiny_models import tiny_config

CONFIG = parse_config(tiny_config("llama2"))
#: Keys and values of 2 layers, 4 heads of 16 float32, 16 tokens.
BLOCK = 2 * 2 * 4 * 16 * 4 * 16
CPU = torch.device("cpu")


def plan(memory_: int | None, length: int | None = None, block_size: int = 16) -> Capacity:
    return plan_capacity(
        CONFIG, torch.float32, CPU, block_size, kv_cache_memory=memory_, max_model_len=length
    )


def test_memory_is_cut_into_whole_blocks():
    """What does not fill a block is not taken."""
    assert plan(100 * BLOCK + BLOCK - 1) == Capacity(100, 512, 100 * BLOCK)


def test_the_length_asked_for_is_the_length_served():
    """A smaller length than the model's is honoured."""
    assert plan(100 * BLOCK, 77).max_model_len == 77


def test_half_precision_fits_twice_the_blocks():
    """Blocks are priced in the type of the cache."""
    capacity = plan_capacity(CONFIG, torch.bfloat16, CPU, 16, kv_cache_memory=40 * BLOCK)
    assert capacity.num_blocks == 80


def test_little_memory_shortens_requests_and_says_so(caplog):
    """Without an asked length, one request of the served length always fits."""
    with caplog.at_level(logging.WARNING):
        assert plan(5 * BLOCK) == Capacity(5, 80, 5 * BLOCK)
    assert "limits requests to 80 tokens" in caplog.text


@pytest.mark.parametrize("length", [-5, 0, 1, 513, 10**9])
def test_a_length_beyond_the_model_is_refused(length):
    """A length that the model cannot serve is an error that names the flag and the range."""
    with pytest.raises(ConfigError, match=r"--max-model-len .* between 2 and the model's own 512"):
        plan(100 * BLOCK, length)


def test_memory_below_the_asked_length_is_refused_with_what_is_needed():
    """The message gives a value of --kv-cache-memory that works."""
    with pytest.raises(ConfigError, match=f"--kv-cache-memory {7 * BLOCK} ") as caught:
        plan(5 * BLOCK, 100)
    needed = int(str(caught.value).split("--kv-cache-memory ")[1].split()[0])
    assert plan(needed, 100).num_blocks == 7


@pytest.mark.parametrize("amount", [0, 1, BLOCK - 1])
def test_memory_without_room_for_a_block_is_refused(amount):
    """Memory for no block at all is an error, with or without a length."""
    with pytest.raises(ConfigError, match="0 tokens"):
        plan(amount)


def test_the_default_is_a_share_of_the_machine(monkeypatch):
    """15 % of the machine's memory is taken, and at most 4 GiB."""
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 18}
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    assert plan(None).num_bytes == int(0.15 * (1 << 30)) // BLOCK * BLOCK
    pages["SC_PHYS_PAGES"] = 1 << 30
    assert plan(None).num_bytes == 4 << 30
