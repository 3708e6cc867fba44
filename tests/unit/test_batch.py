"""A plan as tensors: positions, slots, block tables, and which rows get a token."""

from __future__ import annotations

import torch

from giusto.core.latency import BatchShape
from giusto.core.plan import Grant, Plan
from giusto.core.request import Request, Submission
from giusto.engine.batch import build


def request(name: str, tokens: list[int], computed: int, blocks: list[int]) -> Request:
    made = Request.of(Submission(name, 0.0, len(tokens), prompt_ids=tuple(tokens)))
    made.num_computed_tokens, made.blocks = computed, blocks
    return made


REQUESTS = {
    "chunk": request("chunk", list(range(100, 110)), 3, [7, 2, 5]),
    "decode": request("decode", list(range(50, 59)), 8, [4, 1, 0]),
    "whole": request("whole", [30, 31], 0, [9]),
}


def test_a_mixed_step_is_laid_out_side_by_side():
    """A middle chunk, a decode and a whole prompt lie one after the other with their places."""
    plan = Plan(0, (Grant("chunk", 4), Grant("decode", 1), Grant("whole", 2)))
    batch = build(plan, REQUESTS, 4, "cpu")
    tensors = batch.tensors
    assert tensors.token_ids.tolist() == [103, 104, 105, 106, 58, 30, 31]
    assert tensors.positions.tolist() == [3, 4, 5, 6, 8, 0, 1]
    assert tensors.slot_mapping.tolist() == [31, 8, 9, 10, 0, 36, 37]
    assert tensors.query_lens == [4, 1, 2]
    assert tensors.context_lens == [7, 9, 2]
    assert tensors.block_tables.tolist() == [[7, 2, 0], [4, 1, 0], [9, 0, 0]]


def test_only_requests_that_reach_their_last_token_get_logits():
    """A chunk that ends mid-prompt yields no row; the others yield their last token's."""
    plan = Plan(0, (Grant("chunk", 4), Grant("decode", 1), Grant("whole", 2)))
    batch = build(plan, REQUESTS, 4, "cpu")
    assert [head.request.id for head in batch.heads] == ["decode", "whole"]
    assert batch.tensors.logits_indices.tolist() == [4, 6]


def test_a_step_of_chunks_alone_has_no_rows():
    """Without a finished prompt there is nothing to draw."""
    batch = build(Plan(0, (Grant("chunk", 2),)), REQUESTS, 4, "cpu")
    assert batch.heads == ()
    assert batch.tensors.logits_indices.dtype == torch.int64
    assert batch.tensors.logits_indices.tolist() == []


def test_the_shape_counts_single_tokens_as_decodes():
    """Chunks count as prompt tokens with the context before them, single tokens as decodes."""
    plan = Plan(0, (Grant("chunk", 4), Grant("decode", 1), Grant("whole", 2)))
    assert build(plan, REQUESTS, 4, "cpu").shape == BatchShape(
        prefill_tokens=6, prefill_kv=4 * 3, decode_seqs=1, kv_tokens=9
    )
