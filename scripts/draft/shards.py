"""Files of answers with what else the target held likely; numpy arrays, no objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from asks import CLASSES

#: Likeliest tokens that are kept of each position.
TOP = 32


@dataclass
class Answered:
    """One prompt, or its end, with the target's answer.

    `top_ids` integers and `top_logprobs` float16 are [answer, TOP]; `is_whole`: it came to its end.
    """

    kind: str
    prompt: Sequence[int]
    answer: Sequence[int]
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    is_whole: bool = False


def write_shard(path: Path, rows: Sequence[Answered]) -> None:
    """Write a shard beside its place, then rename it: a file that is there is whole."""
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        kinds=np.array([CLASSES.index(row.kind) for row in rows], dtype=np.int8),
        lengths=np.array([(len(row.prompt), len(row.answer)) for row in rows], dtype=np.int32),
        whole=np.array([row.is_whole for row in rows]),
        tokens=np.concatenate([np.array([*row.prompt, *row.answer], np.int32) for row in rows]),
        top_ids=np.concatenate([row.top_ids for row in rows]),
        top_logprobs=np.concatenate([row.top_logprobs for row in rows]),
    )
    part.rename(path)


def read_shard(path: Path) -> list[Answered]:
    with np.load(path, allow_pickle=False) as file:
        content = {name: file[name] for name in file.files}
    rows = []
    token = place = 0
    for kind, (before, count), whole in zip(
        content["kinds"], content["lengths"].tolist(), content["whole"], strict=True
    ):
        tokens = content["tokens"][token : token + before + count].tolist()
        span = slice(place, place + count)
        top_ids, top_logprobs = content["top_ids"][span], content["top_logprobs"][span]
        rows.append(
            Answered(
                CLASSES[kind], tokens[:before], tokens[before:], top_ids, top_logprobs, bool(whole)
            )
        )
        token, place = token + before + count, place + count
    return rows
