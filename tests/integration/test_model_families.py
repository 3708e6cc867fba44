"""The decoder against `transformers`, in float32, for every kind of model it runs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from drive import Driver, Sequence
from giusto.engine import attention
from giusto.engine.weights import load_model
from tiny_models import FAMILIES, VOCAB_SIZE, make_tiny

CLEAR_GAP = 1e-3
TOLERANCE = 1e-4
PROMPT_LENGTHS = (21, 50, 6)
NEW_TOKENS = 48


@dataclass(frozen=True)
class Reference:
    """What `transformers` generates after one prompt: tokens [n] and logits [n, vocab]."""

    prompt: list[int]
    tokens: list[int]
    logits: Tensor
    gaps: list[float]


@dataclass(frozen=True)
class Family:
    name: str
    driver: Driver
    references: list[Reference]

    def fresh_driver(self, **sizes: int) -> Driver:
        return Driver(self.driver.decoder, **sizes)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory) -> Family:
    folder = make_tiny(tmp_path_factory.mktemp(request.param), request.param, seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(5)
    references = []
    for length in PROMPT_LENGTHS:
        prompt = torch.randint(3, VOCAB_SIZE, (1, length), generator=generator)
        answer = model.generate(
            prompt,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
        )
        logits = torch.cat(answer.logits)
        best = logits.topk(2).values
        references.append(
            Reference(
                prompt[0].tolist(),
                answer.sequences[0, length:].tolist(),
                logits,
                (best[:, 0] - best[:, 1]).tolist(),
            )
        )
    decoder = load_model(folder, "float32").decoder
    return Family(request.param, Driver(decoder), references)


def accept(sequence: Sequence, reference: Reference, row: Tensor) -> None:
    """Check the logits after a sequence and append the token that greedy decoding takes."""
    place = len(sequence.tokens) - len(reference.prompt)
    torch.testing.assert_close(row, reference.logits[place], atol=TOLERANCE, rtol=0)
    if reference.gaps[place] > CLEAR_GAP:
        assert reference.tokens[place] == int(row.argmax())
    sequence.tokens.append(reference.tokens[place])


def generated(sequence: Sequence, reference: Reference) -> int:
    return len(sequence.tokens) - len(reference.prompt)


def test_gaps_are_clear(family: Family) -> None:
    """The models decide greedy decoding by more than 1e-3 at over 99 % of positions."""
    gaps = torch.tensor([reference.gaps for reference in family.references])
    assert (gaps > CLEAR_GAP).float().mean() > 0.99
    assert len({token for r in family.references for token in r.tokens}) > 30


def test_alone_and_whole(family: Family) -> None:
    """A sequence alone, its prompt in one step, is generated token for token."""
    for reference in family.references:
        driver = family.fresh_driver()
        sequence = Sequence(list(reference.prompt))
        while generated(sequence, reference) < NEW_TOKENS:
            logits = driver.step([(sequence, len(sequence.tokens) - sequence.computed)])
            accept(sequence, reference, logits[-1])


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunked(family: Family, chunk: int) -> None:
    """The size of prompt chunks changes nothing, nor do block borders."""
    reference = family.references[1]
    driver = family.fresh_driver(block_size=8)
    sequence = Sequence(list(reference.prompt))
    while generated(sequence, reference) < 8:
        count = min(chunk, len(sequence.tokens) - sequence.computed)
        logits = driver.step([(sequence, count)])
        if sequence.computed == len(sequence.tokens):
            accept(sequence, reference, logits[-1])


@pytest.mark.parametrize("padding", [0, 32, 10_000])
def test_batched(family: Family, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch-mates, prefix hits, a preemption and the grouping of decodes change nothing.

    Sequences join one by one with chunked prompts while others decode; one starts on the blocks of
    another, one loses its blocks half way and is computed again.
    """
    monkeypatch.setattr(attention, "_PADDING_PER_GROUP", padding)
    driver = family.fresh_driver()
    running: list[tuple[Sequence, Reference]] = []
    waiting = [(Sequence(list(r.prompt)), r) for r in family.references]
    second = family.references[1]
    for step in range(400):
        if waiting and step % 5 == 0:
            running.append(waiting.pop())
        if step == 18:
            source = next(s for s, r in running if r is second)
            running.insert(0, (driver.fork(source, second.prompt), second))
            assert running[0][0].computed == 48 // driver.kv.block_size * driver.kv.block_size
        if step == 30:
            running[1][0].computed, running[1][0].blocks = 0, []
        work = [(s, min(9, len(s.tokens) - s.computed)) for s, _ in running]
        rows = driver.step(work).split([count for _, count in work])
        for (sequence, reference), logits in zip(running, rows, strict=True):
            if sequence.computed == len(sequence.tokens):
                accept(sequence, reference, logits[-1])
        running = [(s, r) for s, r in running if generated(s, r) < NEW_TOKENS]
        if not running and not waiting:
            return
    pytest.fail("the sequences did not finish")


def test_all_logits_of_a_chunk(family: Family) -> None:
    """Every row of a chunk after a prefix has the logits of its own position."""
    reference = family.references[0]
    sequence = Sequence(reference.prompt + reference.tokens)
    driver = family.fresh_driver()
    driver.step([(sequence, len(reference.prompt) - 1)])
    logits = driver.step([(sequence, NEW_TOKENS)])
    torch.testing.assert_close(logits, reference.logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_wanted_logits(tmp_path, dtype: str) -> None:
    """Logits come for the rows asked for, in that order; for none of them too."""
    decoder = load_model(make_tiny(tmp_path, "qwen2"), dtype).decoder
    tokens = list(range(3, 40))
    every = Driver(decoder).step([(Sequence(tokens), 37)])
    some = Driver(decoder).step([(Sequence(tokens), 37)], wanted=[36, 5])
    assert torch.float32 == some.dtype
    torch.testing.assert_close(every[[36, 5]], some, atol=2e-2, rtol=0)
    assert Driver(decoder).step([(Sequence(tokens), 37)], wanted=[]).shape == (0, VOCAB_SIZE)


def test_bf16_in_a_batch(tmp_path) -> None:
    """In bf16 a sequence has nearly the logits alone that it has in a batch."""
    decoder = load_model(make_tiny(tmp_path, "llama3"), "bfloat16").decoder
    alone, together = Driver(decoder), Driver(decoder)
    lengths = (5, 17, 40)
    batch = [Sequence(list(range(3, 3 + length + 8))) for length in lengths]
    together.step([(s, n) for s, n in zip(batch, lengths, strict=True)])
    for turn in range(8):
        rows = together.step([(s, 1) for s in batch])
        sequence = Sequence(batch[1].tokens)
        expected = alone.step([(sequence, lengths[1] + turn + 1)])[-1]
        assert (rows[1] - expected).abs().max() < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(family: Family, tmp_path_factory) -> None:
    """The same code runs on a GPU and agrees."""
    folder = make_tiny(tmp_path_factory.mktemp("cuda"), family.name, seed=3)
    torch.backends.cuda.matmul.allow_tf32 = False
    driver = Driver(load_model(folder, "float32", "cuda").decoder)
    for reference in family.references:
        sequence = Sequence(list(reference.prompt))
        while generated(sequence, reference) < NEW_TOKENS:
            logits = driver.step([(sequence, len(sequence.tokens) - sequence.computed)])
            accept(sequence, reference, logits[-1].cpu())
