"""Two ways to start an engine loop on its end of a socket pair: a process or a thread.

Serving uses a process: the interpreter lock is then the engine's alone (`docs/design`, note 6, has
the measurement). The thread serves tests and notebooks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: What torch's libraries read once, when they are loaded; the caller's own settings win.
#:
#: OpenMP's threads spin while they wait for each other, libgomp's for 300,000 rounds, and so keep
#: the server and other processes off their cores: a short spin bridges the gap to the next operator
#: and then lets go. Large tensors go to huge pages where the system offers them: a first touch
#: costs a five-hundredth of the page faults, and contexts are read with fewer misses.
#: docs/log.md has the figures of both.
ENVIRONMENT = {"GOMP_SPINCOUNT": "5000", "THP_MEM_ALLOC_ENABLE": "1"}


def adopt_environment() -> None:
    """Give this process what an engine's own process gets; call it before torch is loaded."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)


@dataclass(slots=True)
class ProcessLauncher:
    """Runs `command` with the socket's file descriptor as a last argument."""

    command: Sequence[str]

    def __call__(self, connection: socket.socket) -> EngineProcess:
        fd = connection.fileno()
        environment = {**ENVIRONMENT, **os.environ}
        # Its own session: Ctrl-C and SIGTERM go to the server, which drains and closes the socket.
        process = subprocess.Popen(
            [*self.command, str(fd)], pass_fds=[fd], start_new_session=True, env=environment
        )
        connection.close()
        return EngineProcess(process)


@dataclass(slots=True)
class EngineProcess:
    process: subprocess.Popen[bytes]

    def stop(self, timeout: float) -> None:
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class ThreadLauncher:
    """Runs `target` with the socket in a thread of this process."""

    target: Callable[[socket.socket], None]

    def __call__(self, connection: socket.socket) -> EngineThread:
        thread = threading.Thread(target=self.target, args=(connection,), name="giusto-engine")
        thread.start()
        return EngineThread(thread)


@dataclass(slots=True)
class EngineThread:
    thread: threading.Thread

    def stop(self, timeout: float) -> None:
        self.thread.join(timeout)
