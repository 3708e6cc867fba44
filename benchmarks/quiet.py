"""Is the machine quiet enough to measure? Reads /proc; Linux only."""

from __future__ import annotations

import os
import time
from pathlib import Path

#: A measurement is refused while another process uses more than this share of a core.
MOST = 0.2


def busy_processes(seconds: float = 1.0) -> list[tuple[float, str]]:
    """Processes other than this one's family that used more than `MOST` of a core just now."""
    before = _cpu_seconds()
    time.sleep(seconds)
    after = _cpu_seconds()
    family = _family(os.getpid())
    busy = []
    for pid, (used, name) in after.items():
        share = (used - before.get(pid, (used, ""))[0]) / seconds
        if share > MOST and pid not in family:
            busy.append((share, f"{name} ({pid})"))
    return sorted(busy, reverse=True)


def wait_until_quiet(patience: float = 120.0) -> None:
    """Return when nobody else is busy; SystemExit that names who is, after `patience` seconds."""
    end = time.monotonic() + patience
    while busy := busy_processes():
        if time.monotonic() > end:
            names = ", ".join(f"{name} uses {share:.0%} of a core" for share, name in busy)
            raise SystemExit(f"the machine is not quiet: {names}; try again later")


def _cpu_seconds() -> dict[int, tuple[float, str]]:
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue  # ended meanwhile
        name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :]
        fields = rest.split()
        found[int(folder.name)] = ((int(fields[11]) + int(fields[12])) / tick, name)
    return found


def _family(pid: int) -> set[int]:
    """This process, its parents and its children."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue
            parents[int(folder.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    family = {pid}
    up = pid
    while up in parents:
        up = parents[up]
        family.add(up)
    grew = True
    while grew:
        children = {child for child, parent in parents.items() if parent in family - {0, 1}}
        grew = not children <= family
        family |= children
    return family
