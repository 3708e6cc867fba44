"""What other packages import from the core is there, documented, and has no surprises."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import giusto.core
import giusto.policies
import giusto.predict
from giusto import __version__

MODULES = [
    module.name
    for package in (giusto.core, giusto.policies, giusto.predict)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str) -> None:
    """A module, and every public class or function that it defines, has a docstring."""
    module = importlib.import_module(name)
    assert module.__doc__
    for label, member in vars(module).items():
        is_own = getattr(member, "__module__", None) == name and not label.startswith("_")
        if is_own and inspect.isclass(member):
            assert (member.__doc__ or "").strip(), f"{name}.{label} has no docstring"


def test_the_version_is_a_version() -> None:
    """Three numbers."""
    assert all(part.isdigit() for part in __version__.split("."))
    assert len(__version__.split(".")) == 3
