"""What a policy may ask about a program whose further calls nobody has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from giusto.core.request import RequestView


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a program still has before it after the stage of the call that was asked about.

    stages and calls: how many are to come; prompt_tokens and output_tokens: of all those calls;
    path_tokens: output tokens on the longest way through them, one call per stage; tool_time:
    seconds of tools on that way; share: the part of the program's whole time that has passed once
    the present stage ends, above 0 and at most 1 (the cumulative split of Tempo, section 4.2, the
    present stage included). All 0 and 1 for a call that is the last.
    """

    stages: float = 0.0
    calls: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    path_tokens: float = 0.0
    tool_time: float = 0.0
    share: float = 1.0


LAST = Outlook()


class ProgramMatcher(Protocol):
    """Foretells programs from those that ended."""

    def outlook(self, request: RequestView) -> Outlook:
        """What is to come after this call's stage; a look-up, for it is asked in every step."""
        ...

    def observe(self, event: object) -> None:
        """Learn from arrivals, endings and closed programs; other events are ignored."""
        ...


class Unforeseen:
    """Takes every call for its program's last; where nothing is known, and for ablations."""

    def outlook(self, request: RequestView) -> Outlook:
        return LAST

    def observe(self, event: object) -> None:
        """Nothing to learn."""
