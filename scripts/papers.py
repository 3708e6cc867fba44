"""Write docs/papers.md from the `Source:` lines of the docstrings under src/giusto.

python scripts/papers.py            # write it
python scripts/papers.py --check    # fail when it is out of date
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "giusto"
PAGE = ROOT / "docs" / "papers.md"

HEAD = """\
# Papers

What the code says it comes from, and where it differs. Written by `make docs` from the `Source:`
lines of docstrings; edit those.
"""


def main() -> None:
    page = render(SOURCES)
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
            sys.exit("docs/papers.md is out of date: run `make docs`")
    else:
        PAGE.write_text(page, encoding="utf-8")


def render(sources: Path) -> str:
    """The whole page; one section per module that names a source."""
    parts = [HEAD]
    for path in sorted(sources.rglob("*.py")):
        cited = list(citations(path.read_text(encoding="utf-8")))
        if not cited:
            continue
        name = path.relative_to(sources).as_posix()
        lines = [f"- `{where}`: {text}" if where else f"- {text}" for where, text in cited]
        body = "\n".join(lines)
        parts.append(f"## [{name}](../src/giusto/{name})\n\n{body}\n")
    return "\n".join(parts)


def citations(code: str) -> Iterator[tuple[str, str]]:
    """Yield where in a module a source is named ("" for its own docstring), and the paragraph."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
            text = " ".join(paragraph.split())
            if match := re.match(r"(?:Source|Sources|Paper): (.+)", text):
                yield getattr(node, "name", ""), match[1]


if __name__ == "__main__":
    main()
