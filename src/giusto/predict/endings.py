"""Which requests ended with an answer: what every learner of lengths asks of the events."""

from __future__ import annotations

from giusto.core.events import Arrived, Finished, Rejected
from giusto.core.request import FinishReason, RequestView

ANSWERED = (FinishReason.STOP, FinishReason.LENGTH)


class Endings:
    """Follows open requests; tells of each that ended with output, by itself or at its cap."""

    def __init__(self) -> None:
        self._open: dict[str, RequestView] = {}

    def of(self, event: object) -> RequestView | None:
        """The request that this event ended with an answer; None for all other events."""
        match event:
            case Arrived(request):
                self._open[request.id] = request
            case Finished(request_id, _, reason):
                ended = self._open.pop(request_id, None)
                if ended is not None and reason in ANSWERED and ended.num_output_tokens:
                    return ended
            case Rejected(request_id):
                self._open.pop(request_id, None)
        return None
