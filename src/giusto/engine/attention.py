"""Paged attention over one ragged batch; called by `model` once per layer.

`prepare` turns the lengths and block tables of a step into index tensors once; `attend` then writes
the step's keys and values into the cache and reads each sequence's context back. Sequences with one
new token are gathered into padded groups of similar length, longer chunks run one by one. Only the
order of float additions depends on which sequences share a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from giusto.engine.tensors import BatchTensors, LayerCache

# A further group costs about as much per layer as attending to this many padded tokens (2 cores).
_PADDING_PER_GROUP = 768


@dataclass(frozen=True, slots=True)
class _Decodes:
    """Sequences with one new token each, contexts padded to a common length.

    `rows` int64 [n] selects their tokens; `slots` int64 [n * length]; `mask` [n, 1, 1, length] is 0
    or -inf, None when nothing is padded.
    """

    rows: Tensor
    slots: Tensor
    mask: Tensor | None
    count: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Several new tokens of one sequence: rows `start` to `stop` of the step.

    `slots` int64 [context] is None when the chunk is its whole context; `mask` [queries, context]
    is None where plain causal order says the same.
    """

    start: int
    stop: int
    slots: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionIndex:
    """Everything about a step that all its layers share.

    `uniform`: the step is one group of decodes, in the order of its tokens.
    """

    slot_mapping: Tensor
    uniform: bool
    decodes: tuple[_Decodes, ...]
    chunks: tuple[_Chunk, ...]


def prepare(
    batch: BatchTensors, block_size: int, dtype: torch.dtype, window: int | None = None
) -> AttentionIndex:
    """Build the index tensors of one step.

    Args:
        dtype: that of queries and cache; additive masks must have it.
        window: tokens that a token sees, itself included; None for all before it.
    """
    if batch.tree_mask is not None:
        raise ValueError("tree attention is not computed; pass tree_mask=None")
    singles: list[tuple[int, int, int]] = []
    chunks: list[_Chunk] = []
    start = 0
    for index, (queries, context) in enumerate(
        zip(batch.query_lens, batch.context_lens, strict=True)
    ):
        if queries == 1:
            singles.append((context if window is None else min(context, window), index, start))
        else:
            table = batch.block_tables[index]
            chunks.append(_chunk(table, (start, queries, context), block_size, dtype, window))
        start += queries
    groups = _group_by_length(singles)
    uniform = len(groups) == 1 and not chunks
    decodes = tuple(_decodes(batch, group, block_size, dtype) for group in groups)
    return AttentionIndex(batch.slot_mapping, uniform, decodes, tuple(chunks))


def attend(
    query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, index: AttentionIndex
) -> Tensor:
    """Write this step's keys and values into the cache and attend to each token's context.

    Args:
        query: [tokens, heads, head_dim].
        key: [tokens, kv_heads, head_dim], as `value`.
        cache: the layer's slots; changed in place.

    Returns:
        [tokens, heads * head_dim].
    """
    cache.keys.index_copy_(0, index.slot_mapping, key)
    cache.values.index_copy_(0, index.slot_mapping, value)
    if index.uniform:
        return _attend_decodes(query, cache, index.decodes[0])
    tokens, heads, head_dim = query.shape
    output = query.new_empty((tokens, heads * head_dim))
    for decodes in index.decodes:
        result = _attend_decodes(query.index_select(0, decodes.rows), cache, decodes)
        output.index_copy_(0, decodes.rows, result)
    for chunk in index.chunks:
        rows = slice(chunk.start, chunk.stop)
        if chunk.slots is None:
            keys, values = key[rows], value[rows]
        else:
            keys = cache.keys.index_select(0, chunk.slots)
            values = cache.values.index_select(0, chunk.slots)
        output[rows] = _attend_chunk(query[rows], keys, values, chunk.mask)
    return output


def _attend_decodes(query: Tensor, cache: LayerCache, decodes: _Decodes) -> Tensor:
    """Attend from one token per sequence, query [n, heads, head_dim], to [n, heads * head_dim].

    The query heads that share a key head become its query positions: no key is repeated.
    """
    count, heads, head_dim = query.shape
    kv_heads = cache.keys.shape[1]
    shape = (count, -1, kv_heads, head_dim)
    keys = cache.keys.index_select(0, decodes.slots).view(shape).transpose(1, 2)
    values = cache.values.index_select(0, decodes.slots).view(shape).transpose(1, 2)
    grouped = query.view(count, kv_heads, heads // kv_heads, head_dim)
    output = scaled_dot_product_attention(grouped, keys, values, attn_mask=decodes.mask)
    return output.reshape(count, heads * head_dim)


def _attend_chunk(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from several tokens of one sequence, query [n, heads, head_dim].

    Key heads become the batch and their query heads the heads, so that repeating a key head is a
    stride of zero.
    """
    count, heads, head_dim = query.shape
    context, kv_heads, _ = keys.shape
    group = heads // kv_heads
    shape = (kv_heads, group, context, head_dim)
    output = scaled_dot_product_attention(
        query.view(count, kv_heads, group, head_dim).permute(1, 2, 0, 3),
        keys.transpose(0, 1).unsqueeze(1).expand(shape),
        values.transpose(0, 1).unsqueeze(1).expand(shape),
        attn_mask=mask,
        is_causal=mask is None,
    )
    return output.permute(2, 0, 1, 3).reshape(count, heads * head_dim)


def _group_by_length(singles: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Split (length, sequence, row) triples where padding would cost more than a further group."""
    if not singles:
        return []
    longest = max(length for length, _, _ in singles)
    if sum(longest - length for length, _, _ in singles) <= _PADDING_PER_GROUP:
        return [singles]
    groups: list[list[tuple[int, int, int]]] = []
    padding = 0
    for single in sorted(singles, reverse=True):
        if groups:
            padding += groups[-1][0][0] - single[0]
        if not groups or padding > _PADDING_PER_GROUP:
            groups.append([])
            padding = 0
        groups[-1].append(single)
    return groups


def _decodes(
    batch: BatchTensors,
    group: list[tuple[int, int, int]],
    block_size: int,
    dtype: torch.dtype,
) -> _Decodes:
    device = batch.slot_mapping.device
    longest = max(length for length, _, _ in group)
    facts = torch.tensor(
        [(length, index, row, batch.context_lens[index]) for length, index, row in group],
        device=device,
    )
    lengths, indices, rows, contexts = facts.unsqueeze(2).unbind(1)
    columns = torch.arange(longest, device=device)
    # Padding repeats the sequence's own last token: a masked column never reads what others wrote.
    positions = torch.minimum(contexts - lengths + columns, contexts - 1)
    tables = batch.block_tables.index_select(0, indices.view(-1))
    slots = _slots(tables, positions, block_size).view(-1)
    mask = None
    if any(length != longest for length, _, _ in group):
        padded = (columns >= lengths)[:, None, None]
        mask = torch.zeros(padded.shape, dtype=dtype, device=device).masked_fill_(
            padded, float("-inf")
        )
    return _Decodes(rows.view(-1), slots, mask, len(group))


def _chunk(
    table: Tensor,
    span: tuple[int, int, int],
    block_size: int,
    dtype: torch.dtype,
    window: int | None,
) -> _Chunk:
    """Index one chunk; `span` is its first row, its tokens, and its context with them."""
    start, queries, context = span
    sees = min(window or context, context)
    if queries == context == sees:
        return _Chunk(start, start + queries, None, None)
    first = max(0, context - queries + 1 - sees)
    keys = torch.arange(first, context, device=table.device)
    positions = torch.arange(context - queries, context, device=table.device)[:, None]
    hidden = (keys > positions) | (keys <= positions - sees)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=table.device)
    mask.masked_fill_(hidden, float("-inf"))
    slots = _slots(table[None], keys[None], block_size).view(-1)
    return _Chunk(start, start + queries, slots, mask)


def _slots(tables: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Map positions [n, length] through block tables [n, max_blocks] to slots [n, length]."""
    blocks = tables.gather(1, positions // block_size)
    return blocks * block_size + positions % block_size
