"""The errors of the stand-in, worded and numbered as the real server answers them."""

from __future__ import annotations


class Refusal(Exception):
    """A call is answered with an HTTP error.

    Attributes:
        status: The HTTP status.
        message: What the client reads.
        violations: Of a definition that does not validate: path and message of each fault.
    """

    def __init__(self, status: int, message: str, violations: list[dict[str, str]] | None = None):
        super().__init__(status, message)
        self.status, self.message, self.violations = status, message, violations


def invalid(path: str, message: str) -> Refusal:
    """A definition or request with one fault, named in ``validationErrors``."""
    fault = {"path": path, "message": message}
    return Refusal(400, "Validation failed, check below errors for detail.", [fault])


def unknown_workflow(workflow_id: str) -> Refusal:
    """No workflow has this id."""
    return Refusal(404, f"No such workflow found by id: {workflow_id}")
