"""Back to where the session or the prefix was served last, unless that replica is overloaded.

Short prompts share little but system prompts, which every replica has cached soon: they go to the
least loaded. A hot replica loses the pin, so that sticky routing cannot pile work up on one.

Source: Autellix (arXiv 2502.13965), its router with the threshold of 2,048 tokens. Differs: the
threshold is an option, prefixes pin as sessions do, and a pin is moved when its replica has more
than `hot` times the mean load.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from giusto.routing.base import ReplicaView, Visitor, load
from giusto.routing.least_loaded import LeastLoaded

#: Pins that are remembered; the longest unused goes first.
CAPACITY = 100_000


class Locality:
    """See the module. `short` is in tokens of prompt."""

    def __init__(self, *, short: int = 256, hot: float = 2.0) -> None:
        self.short = short
        self.hot = hot
        self._pins: OrderedDict[str, int] = OrderedDict()
        self._least_loaded = LeastLoaded()

    def choose(self, visitor: Visitor, replicas: Sequence[ReplicaView]) -> int:
        key = visitor.session or visitor.prefix
        if key is None or (visitor.session is None and visitor.prompt_tokens < self.short):
            return self._least_loaded.choose(visitor, replicas)
        chosen = self._pins.get(key)
        if chosen is None or chosen >= len(replicas) or self._is_hot(replicas, chosen):
            chosen = self._least_loaded.choose(visitor, replicas)
        self._pins[key] = chosen
        self._pins.move_to_end(key)
        if len(self._pins) > CAPACITY:
            self._pins.popitem(last=False)
        return chosen

    def _is_hot(self, replicas: Sequence[ReplicaView], index: int) -> bool:
        mean = sum(load(replica) for replica in replicas) / len(replicas)
        return load(replicas[index]) > self.hot * max(mean, 1.0)
