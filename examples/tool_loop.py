"""A tool loop as a program: the model asks for a calculation, the calculator answers, it goes on.

    make serve                                                       # in another terminal
    python examples/tool_loop.py "A box has 12 rows of 17 eggs. How many eggs are there?"

Needs `pip install openai`. The tool is described in the prompt and asked for by a line of text, so
that any model will do. What it asks for is read as arithmetic and never run as code. A small model
may put the question into wrong numbers: the calculator is right, the answer need not be.
"""

from __future__ import annotations

import argparse
import ast
import operator
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from openai import OpenAI

from giusto.client import Call, Program

ASKED = """Write the calculation that answers the question, and nothing else.

Question: What is 20 plus 3?
CALC: 20 + 3

Question: {question}"""
TOLD = "The calculator says: {expression} = {result}. Tell me the answer in one sentence."

#: Digits and brackets around at least one operator, on one line.
ARITHMETIC = r"-?[\d.(][\d .()]*[-+*/%][-\d .()+*/%]*[\d)]"
MAX_CHARACTERS = 100
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def solve(program: Program, question: str, turns: int) -> str:
    messages = [{"role": "user", "content": ASKED.format(question=question)}]
    last: list[Call] = []
    for turn in range(turns):
        said = program.chat(
            messages,
            call=f"think-{turn}",
            parents=last,
            final=turn == turns - 1,
            max_tokens=64,
            temperature=0,
        )
        last = [said]
        # An answer may have arithmetic in it; a model that wants more must say so by name.
        expression = wanted(said.text, is_strict=turn > 0)
        if expression is None:
            break
        result = calculate(expression)
        print(f"  {expression} = {result}")
        told = TOLD.format(expression=expression, result=result)
        messages += [{"role": "assistant", "content": said.text}, {"role": "user", "content": told}]
    return said.text.strip()


def wanted(text: str, *, is_strict: bool = False) -> str | None:
    """The arithmetic behind CALC:, or any where the model forgot the word; None without."""
    text = text.replace("×", "*").replace("÷", "/").replace("**", " ")  # bold, in Markdown
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    found = re.search(rf"CALC\W*?({ARITHMETIC})", text, re.IGNORECASE)
    if found is None and not is_strict:
        found = re.search(f"({ARITHMETIC})", text)
    return found[1] if found else None


def calculate(expression: str) -> str:
    """The value, or what is wrong with the expression: the model is told either."""
    if len(expression) > MAX_CHARACTERS:
        return f"an error, more than {MAX_CHARACTERS} characters"
    try:
        return f"{_value(ast.parse(expression, mode='eval').body):.10g}"
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError) as error:
        return f"an error, {error.__class__.__name__}"


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case ast.UnaryOp(ast.UAdd(), operand):
            return _value(operand)
        case ast.BinOp(left, kind, right) if type(kind) in OPERATORS:
            return OPERATORS[type(kind)](_value(left), _value(right))
    raise ValueError("only numbers and + - * / // %")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Let a model use a calculator, with one deadline.")
    question = "A box has 12 rows of 17 eggs. How many eggs are there?"
    parser.add_argument("question", nargs="?", default=question)
    parser.add_argument("--turns", type=int, default=3, help="calls at most [3]")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--deadline", type=float, default=20.0, help="seconds for the whole [20]")
    given = parser.parse_args(words)
    key = os.environ.get("OPENAI_API_KEY", "none")
    with OpenAI(base_url=given.base_url, api_key=key) as client:
        with Program(client, deadline=given.deadline, app="tool-loop") as program:
            print(solve(program, given.question, max(1, given.turns)))
        print(f"\n{program.report()}")


if __name__ == "__main__":
    main()
