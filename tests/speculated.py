"""What tests of speculation ask, and that answers are those of plain decoding."""

from __future__ import annotations

from engines import CLEAR_GAP, Family, Reference, TinyEngine, random_prompt

NEW_TOKENS = 24
SHARED = random_prompt(37, 1)
PROMPTS = (SHARED, [*SHARED[:33], *random_prompt(15, 2)], random_prompt(5, 3), random_prompt(21, 4))

#: Answers by prompt.
Known = dict[tuple[int, ...], list[int]]


def submit_all(engine: TinyEngine, copies: int = 1, **options) -> None:
    options = {"temperature": 0.0, "max_tokens": NEW_TOKENS} | options
    for copy in range(copies):
        for i, prompt in enumerate(PROMPTS):
            engine.submit(f"{i}.{copy}", prompt, **options)


def answers(engine: TinyEngine) -> dict[str, list[int]]:
    return {name: answer.tokens for name, answer in engine.run().items()}


def plain(family: Family, **options) -> Known:
    """Answers without speculation."""
    engine = TinyEngine(family.model)
    submit_all(engine, **options)
    found = answers(engine)
    return {tuple(prompt): found[f"{i}.0"] for i, prompt in enumerate(PROMPTS)}


def assert_same(family: Family, engine: TinyEngine, known: Known) -> None:
    """Token for token the plain answers, wherever the model decides clearly."""
    for name, answer in engine.answers.items():
        prompt = PROMPTS[int(name[0])]
        expected = known[tuple(prompt)]
        if answer.tokens != expected:
            pairs = zip(answer.tokens, expected, strict=True)
            place = next(i for i, (a, b) in enumerate(pairs) if a != b)
            forced = answer.tokens[: place + 1]
            row: Reference = family.generate(prompt, place + 1, forced)
            best, second = row.logits[place].topk(2).values
            assert best - second <= CLEAR_GAP, f"{name}: token {place} is no near tie"
