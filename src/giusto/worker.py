"""The engine's own process: `python -m giusto.worker SETTINGS FD`, started by the server.

SETTINGS is an `EngineSettings` as JSON, FD an inherited socket. Ends when the socket closes.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys

from giusto.build import run_loop
from giusto.engine.settings import EngineSettings


def main() -> None:
    settings = EngineSettings(**json.loads(sys.argv[1]))
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    # The server decides when the engine ends: it drains first, then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_loop(settings, socket.socket(fileno=int(sys.argv[2])))


if __name__ == "__main__":
    main()
