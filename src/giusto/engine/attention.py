"""Paged attention over one ragged batch; called by `model` once per layer.

`prepare` turns the lengths and block tables of a step into index tensors once; `attend` then writes
the step's keys and values into the cache and reads each sequence's context back. Sequences with one
new token, or with a token tree, are gathered into padded groups of similar length, longer chunks
run one by one. Only the order of float additions depends on which sequences share a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from giusto.engine.tensors import BatchTensors, LayerCache

# A further group costs about as much per layer as attending to this many padded tokens (2 cores).
_PADDING_PER_GROUP = 768


@dataclass(frozen=True, slots=True)
class _Decodes:
    """Sequences with one new token each, or a root and its tree; contexts and queries padded.

    `rows` int64 [n * queries] selects their tokens, a root again where a tree is smaller than the
    largest; `real` int64 selects those that are not such padding, None where all are.
    `slots` int64 [n * length]; `mask` [n, 1, 1, length], with trees [n, 1, group * queries,
    length], is 0 or -inf, None when all see everything.
    """

    rows: Tensor
    slots: Tensor
    mask: Tensor | None
    count: int
    real: Tensor | None = None


class _Single(NamedTuple):
    """A sequence for such a group: tokens that it reads, its number, first row and queries."""

    length: int
    number: int
    row: int
    queries: int


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
    batch: BatchTensors,
    block_size: int,
    dtype: torch.dtype,
    window: int | None = None,
    group: int = 1,
) -> AttentionIndex:
    """Build the index tensors of one step.

    Args:
        dtype: that of queries and cache; additive masks must have it.
        window: tokens that a token sees, itself included; None for all before it.
        group: query heads that share a key head.
    """
    singles: list[_Single] = []
    chunks: list[_Chunk] = []
    start = 0
    for index, (queries, context) in enumerate(
        zip(batch.query_lens, batch.context_lens, strict=True)
    ):
        if queries == 1 or index in batch.trees:
            # A root with its window, and behind it its nodes, whose windows begin later.
            reach = context if window is None else min(context, window + queries - 1)
            singles.append(_Single(reach, index, start, queries))
        else:
            table = batch.block_tables[index]
            chunks.append(_chunk(table, (start, queries, context), block_size, dtype, window))
        start += queries
    groups = _group_by_length(singles)
    decodes = tuple(
        _trees(batch, members, block_size, dtype, window, group)
        if any(single.queries > 1 for single in members)
        else _decodes(batch, members, block_size, dtype)
        for members in groups
    )
    uniform = len(groups) == 1 and not chunks and decodes[0].real is None
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
        rows = decodes.rows
        result = _attend_decodes(query.index_select(0, rows), cache, decodes)
        if decodes.real is not None:
            rows, result = rows[decodes.real], result.index_select(0, decodes.real)
        output.index_copy_(0, rows, result)
    for chunk in index.chunks:
        span = slice(chunk.start, chunk.stop)
        if chunk.slots is None:
            keys, values = key[span], value[span]
        else:
            keys = cache.keys.index_select(0, chunk.slots)
            values = cache.values.index_select(0, chunk.slots)
        output[span] = _attend_chunk(query[span], keys, values, chunk.mask)
    return output


def _attend_decodes(query: Tensor, cache: LayerCache, decodes: _Decodes) -> Tensor:
    """Attend from `queries` tokens per sequence, query [n * queries, heads, head_dim], to
    [n * queries, heads * head_dim].

    The query heads that share a key head become its query positions: no key is repeated.
    """
    tokens, heads, head_dim = query.shape
    count, queries = decodes.count, tokens // decodes.count
    kv_heads = cache.keys.shape[1]
    shape = (count, -1, kv_heads, head_dim)
    keys = cache.keys.index_select(0, decodes.slots).view(shape).transpose(1, 2)
    values = cache.values.index_select(0, decodes.slots).view(shape).transpose(1, 2)
    if queries == 1:
        grouped = query.view(count, kv_heads, heads // kv_heads, head_dim)
        output = scaled_dot_product_attention(grouped, keys, values, attn_mask=decodes.mask)
        return output.reshape(count, heads * head_dim)
    split = query.view(count, queries, kv_heads, heads // kv_heads, head_dim)
    grouped = split.permute(0, 2, 3, 1, 4).reshape(count, kv_heads, -1, head_dim)
    output = scaled_dot_product_attention(grouped, keys, values, attn_mask=decodes.mask)
    joined = output.view(count, kv_heads, heads // kv_heads, queries, head_dim)
    return joined.permute(0, 3, 1, 2, 4).reshape(tokens, heads * head_dim)


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


def _group_by_length(singles: list[_Single]) -> list[list[_Single]]:
    """Split sequences where padding would cost more than a further group."""
    if not singles:
        return []
    longest = max(single.length for single in singles)
    if sum(longest - single.length for single in singles) <= _PADDING_PER_GROUP:
        return [singles]
    groups: list[list[_Single]] = []
    padding = 0
    for single in sorted(singles, reverse=True):
        if groups:
            padding += groups[-1][0].length - single.length
        if not groups or padding > _PADDING_PER_GROUP:
            groups.append([])
            padding = 0
        groups[-1].append(single)
    return groups


def _decodes(
    batch: BatchTensors, members: Sequence[_Single], block_size: int, dtype: torch.dtype
) -> _Decodes:
    """Index sequences with one new token each: what they read is hidden only where it is padded."""
    lengths, rows, places = _places(batch, members)
    slots = _padded_slots(batch, members, places, block_size)
    mask = None
    if any(single.length != members[0].length for single in members):
        columns = torch.arange(places.shape[1], device=places.device)
        mask = _additive((columns >= lengths)[:, None, None], dtype)
    return _Decodes(rows.view(-1), slots, mask, len(members))


def _trees(
    batch: BatchTensors,
    members: Sequence[_Single],
    block_size: int,
    dtype: torch.dtype,
    window: int | None,
    group: int,
) -> _Decodes:
    """Index sequences of which some have a token tree: nodes see what is cached, and their path."""
    _, first_rows, places = _places(batch, members)
    device = places.device
    queries = max(single.queries for single in members)
    steps = torch.arange(queries, device=device)
    sizes = torch.tensor([[single.queries] for single in members], device=device)
    is_real = steps < sizes  # [n, queries]
    rows = first_rows + torch.where(is_real, steps, 0)
    roots = batch.positions[first_rows]  # [n, 1]
    # In the cache a node lies behind the root in the tree's order: only its own tree may see it.
    hidden = (places > roots)[:, None, :].expand(-1, queries, -1).clone()
    if window is not None:
        hidden |= places[:, None, :] <= (batch.positions[rows] - window)[:, :, None]
    for place, single in enumerate(members):
        tree = batch.trees.get(single.number)
        if tree is not None:
            sees = tree.to(device)
            if window is not None:
                own = batch.positions[single.row : single.row + single.queries]
                sees = sees & (own > own[:, None] - window)
            root = single.length - single.queries
            hidden[place, : single.queries, root : single.length] = ~sees
    mask = _additive(hidden, dtype)[:, None, None].expand(-1, 1, group, -1, -1).flatten(2, 3)
    slots = _padded_slots(batch, members, places, block_size)
    real = None if bool(is_real.all()) else is_real.view(-1).nonzero().view(-1)
    return _Decodes(rows.view(-1), slots, mask, len(members), real)


def _places(batch: BatchTensors, members: Sequence[_Single]) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths and first rows, [n, 1] each, and the place in its cache of each column [n, longest].

    Columns beyond a sequence's length have places beyond its context.
    """
    device = batch.slot_mapping.device
    facts = torch.tensor(
        [(single.length, single.row, batch.context_lens[single.number]) for single in members],
        device=device,
    )
    lengths, rows, contexts = facts.unsqueeze(2).unbind(1)
    longest = max(single.length for single in members)
    return lengths, rows, contexts - lengths + torch.arange(longest, device=device)


def _padded_slots(
    batch: BatchTensors, members: Sequence[_Single], places: Tensor, block_size: int
) -> Tensor:
    """Slots [n * longest]; padding repeats a sequence's own last token: a masked column never reads
    what others wrote."""
    last = [[batch.context_lens[single.number] - 1] for single in members]
    indices = torch.tensor([single.number for single in members], device=places.device)
    positions = torch.minimum(places, torch.tensor(last, device=places.device))
    tables = batch.block_tables.index_select(0, indices)
    return _slots(tables, positions, block_size).view(-1)


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is -inf where `hidden`, else 0."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))


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
    slots = _slots(table[None], keys[None], block_size).view(-1)
    return _Chunk(start, start + queries, slots, _additive(hidden, dtype))


def _slots(tables: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Map positions [n, length] through block tables [n, max_blocks] to slots [n, length]."""
    blocks = tables.gather(1, positions // block_size)
    return blocks * block_size + positions % block_size
