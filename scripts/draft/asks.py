"""What the target is asked for the draft's training text: shared prompts, templates, follow-ups.

Prompts that benchmarks and validation use are held back here, in one place: `shared_prompts`.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from random import Random

CLASSES = ("chat", "code", "math", "summarize")
DATA = Path(os.environ.get("GIUSTO_DATA") or Path(__file__).parents[3] / "shared" / "data")
#: Prompts longer than this many tokens are left out, here as in the benchmarks.
LONGEST = 1024
#: The first so many prompts of each class are those that `benchmarks/speculation` measures with.
BENCHED = 32
#: Beside them, one group in so many is for validation.
_ONE_IN = 10


@dataclass(frozen=True)
class Prompt:
    """A shared prompt: its class and turns."""

    kind: str
    turns: tuple[str, ...]


def shared_prompts() -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """The prompts for training, for validation, and those that the benchmarks use.

    All queries on one meeting go the same way: their texts overlap.
    """
    with gzip.open(DATA / "prompts" / "prompts.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row["prompt_tokens"] <= LONGEST]
    by_class = {kind: [row for row in rows if row["class"] == kind] for kind in CLASSES}
    benched = [row for kind in CLASSES for row in by_class[kind][:BENCHED]]
    kept_out = {_group(row["id"]) for row in benched}
    parts: tuple[list[Prompt], list[Prompt], list[Prompt]] = [], [], []
    ids = {row["id"] for row in benched}
    for row in rows:
        group = _group(row["id"])
        prompt = Prompt(row["class"], tuple(row["turns"]))
        if row["id"] in ids:
            parts[2].append(prompt)
        elif int(sha1(group.encode()).hexdigest(), 16) % _ONE_IN == 0:
            parts[1].append(prompt)
        elif group not in kept_out:
            parts[0].append(prompt)
    return parts


def _group(prompt_id: str) -> str:
    return prompt_id.rpartition("/")[0] if prompt_id.startswith("qmsum/") else prompt_id


_TOPICS = (
    """
the water cycle|photosynthesis|the French Revolution|black holes|how vaccines work|compound interest
sourdough bread|learning the guitar|the Roman Empire|plate tectonics|electric cars|home composting
time management|public speaking|the stock market|solar panels|the human heart|how planes fly
climate change|a healthy breakfast|training for a marathon|chess openings|the Great Wall of China
writing a cover letter|negotiating a salary|the Renaissance|bees and pollination|earthquakes
how computers store data|the internet of things|machine learning|cryptography|databases|recursion
version control|unit tests|object-oriented programming|sleep and memory|meditation|houseplants
growing tomatoes|the Moon landing|the periodic table|acids and bases|gravity|the immune system
budgeting for students|renting a flat|travel in Japan|street food in Mexico|jazz|impressionism
the printing press|the Silk Road|coral reefs|rainforests|wolves|octopuses|dinosaurs|volcanoes
remote work|job interviews|team meetings|customer complaints|a product launch|a small bakery
a birthday party for a child|a wedding toast|moving to a new city|making friends as an adult
""".strip()
    .replace("\n", "|")
    .split("|")
)
_CHAT = (
    "Explain {} to a ten-year-old.",
    "What are the most important facts about {}?",
    "Give me five tips about {}.",
    "Write a short story about {}.",
    "Write an email to a colleague about {}.",
    "What are common misconceptions about {}?",
    "Compare {} with {}.",
    "Write a blog post introduction about {}.",
    "I have to give a talk on {}. Help me outline it.",
    "Why does {} matter today?",
    "Write a poem about {}.",
    "What should a beginner know about {}?",
    "List the advantages and disadvantages of {}.",
    "Tell me something surprising about {}.",
    "Describe the history of {} in a few paragraphs.",
)
_TASKS = (
    """
reverses a string|checks whether a number is prime|sorts a list of tuples by their second element
counts the words in a text file|merges two sorted lists|finds the longest common prefix of strings
computes the n-th Fibonacci number|removes duplicates from a list|validates an email address
flattens a nested list|computes the factorial of a number|finds the two largest numbers in a list
converts Celsius to Fahrenheit|checks whether a string is a palindrome|rotates a matrix
implements a stack with push and pop|implements a binary search|reads a CSV file and sums a column
groups words by their first letter|finds all anagrams in a list|computes a running average
parses a date in ISO format|counts vowels in a string|generates a random password
computes the greatest common divisor|transposes a matrix|finds the mode of a list
implements a queue with two stacks|computes Levenshtein distance|inverts a dictionary
""".strip()
    .replace("\n", "|")
    .split("|")
)
_CODE = (
    "Write a Python function that {}.",
    "Write a Python function that {}, with a docstring and type hints.",
    "Write a JavaScript function that {}.",
    "Write a Python function that {} and explain how it works.",
    "How would you write a program that {}? Show the code.",
    "Write a Java method that {}.",
    "Write unit tests for a function that {}.",
    'Complete this Python function:\n\ndef solve(values):\n    """A function that {}."""\n',
)
_NAMES = ("Anna", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jamal")
_THINGS = ("apples", "books", "marbles", "tickets", "stickers", "cookies", "pencils", "coins")
_MATH = (
    "{a} has {x} {thing}. {b} has {y} times as many. How many {thing} do they have together?",
    "{a} buys {x} {thing} at ${y} each and pays with a ${z}0 bill. How much change is there?",
    "A train travels {x}0 miles in {y} hours. How far does it go in {z} hours at that speed?",
    "{a} reads {x} pages a day. How many days does a book of {y}0 pages take, and {z} such books?",
    "{a} had {x}0 {thing}, gave {y} to {b} and lost a quarter of the rest. How many are left?",
    "A rectangle is {x} cm long and {y} cm wide. What are its area and its perimeter?",
    "{a} earns ${x} an hour and works {y} hours a week. How much is that in {z} weeks?",
    "A recipe for {y} people needs {x} cups of flour. How much do {z} people need?",
    "What is {x} * {y} + {z}? Show your steps.",
    "{a} is {x} years older than {b}. In {y} years {a} is twice as old as {b}. How old is {b}?",
)
_SUMMARIES = (
    "Summarize the following text in three sentences.\n\n{}",
    "What are the main points of this text?\n\n{}",
    "{}\n\nSummarize the above.",
    "Rewrite the following more concisely:\n\n{}",
    "What does the text say, in one paragraph?\n\n{}",
)
FOLLOW_UPS = (
    "Can you explain that in more detail?",
    "Please make it shorter.",
    "Can you give me an example?",
    "Why is that?",
    "Rewrite your answer as a list of bullet points.",
    "Are you sure? Check it again.",
    "What would you do differently?",
    "Now translate it for someone who knows nothing about the subject.",
    "Thanks! What should I look at next?",
    "Write a title for it.",
)


def from_template(draw: Random, texts: list[str]) -> Prompt:
    """A prompt made up from parts; `texts` are earlier answers, to be summarised."""
    kind = draw.choices(CLASSES, (5, 3, 3, 3 if texts else 0))[0]
    if kind == "chat":
        text = draw.choice(_CHAT).format(*draw.sample(_TOPICS, 2))
    elif kind == "code":
        text = draw.choice(_CODE).format(draw.choice(_TASKS))
    elif kind == "math":
        a, b = draw.sample(_NAMES, 2)
        x, y, z = draw.sample(range(2, 30), 3)
        thing = draw.choice(_THINGS)
        text = draw.choice(_MATH).format(a=a, b=b, x=x, y=y, z=z, thing=thing)
    else:
        text = draw.choice(_SUMMARIES).format(draw.choice(texts))
    return Prompt(kind, (text,))
