"""A sampler that remembers what each token was drawn from; used by `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from giusto.core.request import Request
from giusto.engine.sampler import Draw, Sampler, TokenPath


@dataclass
class Record:
    """An answer: its tokens, and the likeliest ids and log-probabilities before each."""

    tokens: list[int] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)

    @property
    def top_ids(self) -> np.ndarray:
        return np.stack(self.ids)

    @property
    def top_logprobs(self) -> np.ndarray:
        return np.stack(self.logprobs)


class Recorder(Sampler):
    """Draws as a sampler does and keeps the `top` likeliest of each row until they are taken."""

    def __init__(self, vocab_size: int, eos_token_ids: Sequence[int], top: int) -> None:
        super().__init__(vocab_size, eos_token_ids)
        self._top_count = top
        self._records: dict[str, Record] = {}

    def is_plain(self, request: Request) -> bool:
        return False

    def draw(
        self, requests: Sequence[Request], logits: Tensor, paths: Sequence[TokenPath] | None = None
    ) -> list[Draw]:
        with torch.inference_mode():
            best = logits.topk(self._top_count)
            logprobs = best.values - logits.logsumexp(-1, keepdim=True)
        ids = (
            best.indices.cpu().numpy().astype(np.uint16 if self.vocab_size <= 1 << 16 else np.int32)
        )
        halves = logprobs.to(torch.float16).cpu().numpy()
        draws = super().draw(requests, logits, paths)
        for row, (request, draw) in enumerate(zip(requests, draws, strict=True)):
            record = self._records.setdefault(request.id, Record())
            record.tokens.append(draw.token)
            record.ids.append(ids[row])
            record.logprobs.append(halves[row])
        return draws

    def take(self, request_id: str) -> Record:
        """Hand over what is known of a request."""
        return self._records.pop(request_id)
