"""What no policy may know: how long each answer will be."""

from __future__ import annotations

from collections.abc import Mapping


class Truth:
    """Output lengths in tokens, by request id; samples of one request share its length."""

    def __init__(self, lengths: Mapping[str, int]) -> None:
        self._lengths = lengths

    def output_tokens(self, request_id: str) -> int:
        """Tokens of the answer; KeyError for a request that nobody drew a length for."""
        lengths = self._lengths
        return lengths[request_id if request_id in lengths else request_id.partition("#")[0]]
