"""`report`: any set of result files into one page that needs nothing beside it."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from giusto.bench import plots
from giusto.bench.pages.cases import Chapter, chapters, load
from giusto.bench.pages.markup import Markup, element, picture
from giusto.bench.pages.sections import Gallery, sections
from giusto.core.errors import ConfigError

TITLE = "Which promises were kept"


def report(paths: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write a page about the runs of `paths` to `out`, and its pictures into a folder beside it.

    Runs of different workloads or profiles get chapters of their own. The page holds its pictures
    and styles; the folder, `NAME-plots` for `NAME.html`, has the same pictures as PNG files. The
    same files give the same page. Returns `out`. Raises ConfigError where a file is no result or
    nothing can be written.
    """
    found = chapters(load(paths))
    folder = out.with_name(f"{out.stem}-plots")
    page = Template(
        (resources.files("giusto.bench") / "pages" / "page.html").read_text(encoding="utf-8")
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        out.touch()
        body = [
            _chapter(number, chapter, _gallery(folder, f"{number}-{_slug(chapter.title)}"))
            for number, chapter in enumerate(found, start=1)
        ]
        text = page.substitute(
            title=element("title", title or TITLE),
            heading=element("h1", title or TITLE),
            contents=_contents(found) if len(found) > 1 else "",
            body="\n".join(body),
        )
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or out}: {error.strerror}") from error
    return out


def _chapter(number: int, chapter: Chapter, show: Gallery) -> Markup:
    heading = element("h2", chapter.title, id=f"chapter-{number}")
    return element("article", [heading, *sections(chapter, show)])


def _contents(found: Sequence[Chapter]) -> Markup:
    items = [
        element("li", [element("a", chapter.title, href=f"#chapter-{number}")])
        for number, chapter in enumerate(found, start=1)
    ]
    return element("nav", [element("ol", items)])


def _gallery(folder: Path, prefix: str) -> Gallery:
    """A gallery that keeps each picture in `folder` too."""

    def show(name: str, draw: plots.Draw, caption: str) -> Markup:
        image = plots.png(draw)
        (folder / f"{prefix}-{name}.png").write_bytes(image)
        return picture(b64encode(image).decode("ascii"), name.replace("-", " "), caption)

    return show


def _slug(text: str) -> str:
    """A file name from a title: a workload may be a path."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-40:].strip("-") or "runs"
