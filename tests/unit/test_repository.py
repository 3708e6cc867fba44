"""Rules that hold for the repository as a whole: sizes, words, links, generated pages, verbs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from giusto.cli import app
from giusto.policies import REGISTRY

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
FOLDERS = ("src", "tests", "scripts", "examples", "benchmarks", "docs")
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".txt", ""}


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix in TEXTS:
                yield path


def pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def test_no_source_file_is_too_long() -> None:
    """A source file has at most 400 lines."""
    lengths = {path: path.read_text().count("\n") for path in files("src") if path.suffix == ".py"}
    assert {str(path): n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_nothing_unpickles() -> None:
    """No source imports pickle or joblib, and numpy and torch never load objects."""
    banned = re.compile(
        r"^\s*(import|from)\s+(c?[pP]ickle|joblib|dill|shelve|marshal)\b"
        r"|allow_pickle=True|weights_only=False|torch\.load\(|trust_remote_code=True",
        re.MULTILINE,
    )
    sources = [p for p in files("src", "scripts", "examples", "benchmarks") if p.suffix == ".py"]
    assert [str(path) for path in sources if banned.search(path.read_text())] == []


def test_no_doubts_are_left_in_text() -> None:
    """No file carries a note to its author, or a path of somebody's machine."""
    words = ("TO" + "DO", "FIX" + "ME", "X" + "XX", "/ho" + "me/", "/Us" + "ers/", "/wo" + "rk/")
    banned = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}" for word in words))
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (*files(*FOLDERS), *pages(), ROOT / "Makefile", ROOT / ".ci" / "run")
        if (match := banned.search(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_papers_are_up_to_date() -> None:
    """docs/papers.md says what the docstrings say."""
    command = [sys.executable, str(ROOT / "scripts" / "papers.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_verbs_in_text_exist() -> None:
    """Every `make VERB` in the documentation is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = re.compile(r"(?:`|^|&& )make ([a-z]+)", re.MULTILINE)
    verbs = {verb for page in pages() for verb in said.findall(page.read_text())}
    assert {"serve", "test"} <= verbs <= targets


def _targets(page: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    """A link inside the repository leads to a file that is there, and to a title in it."""
    broken = []
    for target in _targets(page):
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    """docs/README.md, or the index of the design notes, leads to every page."""
    indexes = [ROOT / "docs" / "README.md", ROOT / "docs" / "design" / "README.md"]
    linked = {(i.parent / t.partition("#")[0]).resolve() for i in indexes for t in _targets(i)}
    missing = set((ROOT / "docs").rglob("*.md")) - linked - set(indexes)
    assert set() == missing


def test_license_is_apache() -> None:
    """The licence is there, in full."""
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_flag_is_documented() -> None:
    """docs/reference/cli.md names every flag of every command, and no other."""
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    sections = dict(re.findall(r"^## giusto (\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.M))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        flags = {
            option.opts[0]
            for option in command.params
            if option.opts[0].startswith("--") and not option.hidden and option.name != "help"
        }
        rows = [row.split("|")[1] for row in sections[name].splitlines() if row.startswith("| `-")]
        assert flags == set(re.findall(r"`(--[a-z-]+)`", " ".join(rows))), name


def test_every_policy_is_in_the_readme() -> None:
    """README's table names every policy."""
    table = (ROOT / "README.md").read_text().partition("## Policies")[2].partition("\n## ")[0]
    assert set(REGISTRY) == set(re.findall(r"^\| \[`([\w-]+)`\]", table, re.MULTILINE))


def test_layout_names_every_folder() -> None:
    """README's tree has a line for every package, and for no other."""
    tree = (ROOT / "README.md").read_text().partition("src/giusto/\n")[2].partition("```")[0]
    named = set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE))
    packages = {path.parent.name for path in (ROOT / "src" / "giusto").glob("*/__init__.py")}
    assert packages == named


def test_example_prints_what_is_stored() -> None:
    """The example without a server runs, and the tutorial shows its output."""
    example = ROOT / "examples" / "write_a_policy.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert example.with_suffix(".txt").read_text() == done.stdout
    assert done.stdout in (ROOT / "docs" / "tutorial" / "write_a_policy.md").read_text()


SKIPPING = """
import pytest

def test_bare():
    pytest.skip("because")

@pytest.mark.vllm
def test_marked():
    pytest.skip("not here")

@pytest.mark.xfail
def test_expected():
    assert False
"""


@pytest.mark.parametrize(
    ("is_ci", "expected"),
    [("1", "1 failed, 1 skipped, 1 xfailed"), ("0", "2 skipped, 1 xfailed")],
)
def test_ci_fails_on_skips(tmp_path: Path, is_ci: str, expected: str) -> None:
    """In CI a skipped test is a failure unless its marker says what it lacked."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    vllm\n    ray\n")
    (tmp_path / "test_skips.py").write_text(SKIPPING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"GIUSTO_CI": is_ci, "PATH": ""},
    )
    assert expected in done.stdout
