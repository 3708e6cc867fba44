"""Talk to a running Giusto server with OpenAI's own client, and say what each request is for.

    make serve                                  # in another terminal
    python examples/openai_client.py            # BASE_URL=http://127.0.0.1:8000/v1 by default

Needs `pip install openai`. A promise rides in `extra_body`; the answer says whether it was kept.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

from openai import OpenAI


def stream(client: OpenAI, model: str) -> Any:
    """An answer that somebody reads: first token within 2 s, then one each 150 ms."""
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=64,
        temperature=0,
        stream=True,
        extra_body={"slo": {"ttft_ms": 2000, "tpot_ms": 150}},
    )
    verdict: Any = {}
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
        # The last chunk has what no OpenAI type knows in `model_extra`.
        verdict = (chunk.model_extra or {}).get("slo") or verdict
    print()
    return verdict


def deadline(client: OpenAI, model: str) -> Any:
    """An answer that only counts as a whole: a tool call with ten seconds to spend."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Name three primary colours, separated by commas."}],
        max_tokens=32,
        temperature=0,
        extra_body={"slo": {"deadline_ms": 10_000}},
    )
    print(answer.choices[0].message.content)
    return (answer.model_extra or {}).get("slo", {})


def program(client: OpenAI, model: str) -> Any:
    """Two calls that share one deadline: a step builds on the one before it."""
    name = f"example-{uuid.uuid4().hex[:8]}"
    messages: list[Any] = [{"role": "user", "content": "Suggest a name for a small bakery."}]
    first = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=24,
        temperature=0,
        extra_body={"program": {"id": name, "deadline_ms": 20_000, "call": "name"}},
    )
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Write one line of advertising for it."},
    ]
    second = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=32,
        temperature=0,
        extra_body={"program": {"id": name, "call": "line", "parents": ["name"], "final": True}},
    )
    print(second.choices[0].message.content)
    return (second.model_extra or {}).get("slo", {})


def main() -> None:
    client = OpenAI(
        base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = client.models.list().data[0].id
    for ask in (stream, deadline, program):
        verdict = ask(client, model)
        print(f"  {ask.__name__}: {verdict}\n")


if __name__ == "__main__":
    main()
