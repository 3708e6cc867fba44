"""The scheduler and every policy import with the base dependencies alone."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
for heavy in ("torch", "transformers", "fastapi", "pydantic", "httpx", "matplotlib", "gguf"):
    sys.modules[heavy] = None
import pkgutil, importlib
import giusto, giusto.core, giusto.policies, giusto.predict
for package in (giusto.core, giusto.policies, giusto.predict):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""


def test_core_policies_and_predictors_need_no_torch() -> None:
    """With torch and the server's libraries out of reach, all of them import."""
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], check=True, timeout=60)
