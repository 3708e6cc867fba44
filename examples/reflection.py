"""Reflection as a program: draft, criticise, revise, until there is nothing left to criticise.

    make serve                                                  # in another terminal
    python examples/reflection.py "Write a slogan for a bakery."

Needs `pip install openai`. How many calls there will be is not known beforehand. When the critic is
content early no call was the final one, and leaving the `with` block closes the program.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from openai import OpenAI

from giusto.client import Program

CONTENT = "nothing"


def reflect(program: Program, task: str, rounds: int) -> str:
    last = program.chat(task, call="draft", max_tokens=64, temperature=0)
    for turn in range(rounds):
        critique = program.chat(
            f"Task: {task}\n\nText: {paragraph(last.text)}\n\nSay in one sentence what could be "
            f"better about the text. If it is good, say only: {CONTENT}.",
            call=f"critique-{turn}",
            parents=[last],
            max_tokens=48,
            temperature=0,
        )
        if is_content(critique.text):
            break
        last = program.chat(
            f"Task: {task}\n\nText: {paragraph(last.text)}\n\n"
            f"Criticism: {paragraph(critique.text)}\n\nWrite the text again, better.",
            call=f"revise-{turn}",
            parents=[last, critique],
            final=turn == rounds - 1,
            max_tokens=64,
            temperature=0,
        )
    return paragraph(last.text)


def paragraph(text: str) -> str:
    """The first one: small models like to say the same again below."""
    return text.strip().partition("\n\n")[0]


def is_content(critique: str) -> bool:
    """Whether a critic has nothing to say; small models wrap the word up."""
    words = critique.lower().replace(".", " ").replace('"', " ").split()
    return not words or CONTENT in words[:4]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draft, criticise and revise with one deadline.")
    parser.add_argument("task", nargs="?", default="Write a slogan for a small bakery.")
    parser.add_argument("--rounds", type=int, default=2, help="revisions at most [2]")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for the whole [30]")
    given = parser.parse_args(words)
    key = os.environ.get("OPENAI_API_KEY", "none")
    with OpenAI(base_url=given.base_url, api_key=key) as client:
        with Program(client, deadline=given.deadline, app="reflection") as program:
            print(reflect(program, given.task, given.rounds))
        print(f"\n{program.report()}")


if __name__ == "__main__":
    main()
