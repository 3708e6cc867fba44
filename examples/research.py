"""Research as a program: plan, look into every part at once, bring the notes together.

    make serve                                  # in another terminal
    python examples/research.py "honey bees"    # --help has more

Needs `pip install openai`. Five calls, three of them at the same time, share one deadline; the
server knows who waits for whom, and says at the end whether the whole was in time.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

from giusto.client import Call, Program

MAX_PARTS = 3


def research(program: Program, topic: str) -> str:
    plan = program.chat(
        f"Name three questions that a beginner asks about {topic}. One short question per line.",
        call="plan",
        max_tokens=72,
        temperature=0,
    )
    parts = lines_of(plan.text)[:MAX_PARTS] or [f"What are {topic}?"]

    def look_into(number: int) -> Call:
        return program.chat(
            f"{parts[number]} Answer in two sentences.",
            call=f"note-{number}",
            parents=[plan],
            max_tokens=72,
            temperature=0,
        )

    with ThreadPoolExecutor(len(parts)) as threads:
        notes = list(threads.map(look_into, range(len(parts))))
    found = "\n".join(f"- {note.text.strip()}" for note in notes)
    report = program.chat(
        f"Summarise these notes about {topic} in three sentences.\n\n{found}",
        call="report",
        parents=notes,
        final=True,
        max_tokens=128,
        temperature=0,
    )
    return report.text.strip()


def lines_of(text: str) -> list[str]:
    """Lines without the bullets and numbers that models like to begin them with."""
    plain = text.replace("*", "").splitlines()
    stripped = (re.sub(r"^[\W\d_]+", "", line).strip() for line in plain)
    return [line for line in stripped if line]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Research a topic with one deadline.")
    parser.add_argument("topic", nargs="?", default="honey bees")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for the whole [30]")
    given = parser.parse_args(words)
    key = os.environ.get("OPENAI_API_KEY", "none")
    with OpenAI(base_url=given.base_url, api_key=key) as client:
        with Program(client, deadline=given.deadline, app="research") as program:
            print(research(program, given.topic))
        print(f"\n{program.report()}")


if __name__ == "__main__":
    main()
