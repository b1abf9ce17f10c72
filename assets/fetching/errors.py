"""Errors of fetching: those that a person must act on, and those of one transfer, which may be
retried.
"""

from __future__ import annotations

from assets.fetching.urls import without_secrets


class OperatorError(ValueError):
    """The step cannot go on until a person acts; the message says who, what and where. Trying again
    does not help.
    """


class DiskFullError(OperatorError):
    """The disk has less free space than the settings demand, or none."""


class MissingToolError(OperatorError):
    """An external program or package that a source needs is not installed."""


class AccessError(OperatorError):
    """A token, a licence or an agreement is needed."""


class CoverageError(OperatorError):
    """Fewer of the expected videos are present than the settings demand."""


class AnnotationError(OperatorError):
    """An annotation file has a schema or a syntax that is not understood."""


class TransferError(Exception):
    """One item could not be fetched.

    Its text goes into logs, reports and the catalogue, and often comes from a library that names
    the whole URL: passwords, signatures and tokens are left out of it here.

    Attributes:
        status: `transient` (worth another try), `permanent` or `needs_operator`.
        reason: one word for the report, e.g. `rate_limited`.
        retry_after: seconds the server asked to wait, if it did.
    """

    def __init__(
        self, status: str, reason: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(without_secrets(message))
        self.status, self.reason, self.retry_after = status, reason, retry_after
