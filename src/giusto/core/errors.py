"""The exception tree.

GiustoError
├── ConfigError        settings that cannot be honoured; the message says what to change
├── ModelError         a model folder or file that cannot be loaded
├── InvalidRequest     a request that can never be served as stated (HTTP 400)
└── PlanError          a policy or driver broke the scheduler's contract: a bug
"""

from __future__ import annotations


class GiustoError(Exception):
    """Root of all errors that Giusto raises on purpose."""


class ConfigError(GiustoError):
    """Settings that cannot be honoured; the message says what to change."""


class ModelError(GiustoError):
    """A model that cannot be loaded; one sentence that says what to do."""


class InvalidRequest(GiustoError):
    """A request that can never be served as stated.

    `param` names the offending field in the client's words.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class PlanError(GiustoError):
    """A plan or an outcome that breaks the contract of `core.plan`; a bug, not an input error."""
