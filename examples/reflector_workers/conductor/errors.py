"""What can go wrong between the example and its Conductor.

ConductorError
  ConductorSetupError        no server could be started here
  ConductorUnavailableError  nothing answers at the URL
  ConductorAnswerError       the server answered with an error
  WorkflowTimeoutError       a workflow did not end in time
"""


class ConductorError(Exception):
    """Base of all errors of this package; the text says what, where and how to cure it."""


class ConductorSetupError(ConductorError):
    """The real server could not be fetched, unpacked or started."""


class ConductorUnavailableError(ConductorError):
    """Nothing that speaks Conductor's REST calls answers at a URL."""


class ConductorAnswerError(ConductorError):
    """The server refused a call.

    Attributes:
        status: HTTP status, e.g. 404 for an unknown workflow, 409 if nothing is retryable.
        call: Method and path.
        message: The server's own words.
    """

    def __init__(self, status: int, call: str, message: str) -> None:
        super().__init__(status, call, message)
        self.status, self.call, self.message = status, call, message

    def __str__(self) -> str:
        return f"Conductor answered {self.status} to {self.call}: {self.message}"


class WorkflowTimeoutError(ConductorError, TimeoutError):
    """A workflow was still running when the caller's patience ended.

    Attributes:
        workflow_id: The workflow, still running.
        seconds: How long it was waited for.
        unfinished: ``reference: STATUS`` of each task that has not ended.
    """

    def __init__(self, workflow_id: str, seconds: float, unfinished: tuple[str, ...]) -> None:
        super().__init__(workflow_id, seconds, unfinished)
        self.workflow_id, self.seconds, self.unfinished = workflow_id, seconds, unfinished

    def __str__(self) -> str:
        return (
            f"workflow {self.workflow_id} did not end within {self.seconds:g} s; "
            f"unfinished: {', '.join(self.unfinished) or 'nothing is scheduled'}\n"
            "HINT: SCHEDULED means that no worker polls for this task type; IN_PROGRESS that one "
            "took it and has not answered (if it died, wait for responseTimeoutSeconds)"
        )
