"""A few of Conductor's REST calls, with the standard library alone."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

_SECONDS = 10.0


class ConductorUnavailable(Exception):
    """Conductor does not answer, or refuses; the text says where and what."""


class NotThere(ConductorUnavailable):
    """It answers, and knows of no such thing."""


@dataclass(frozen=True)
class Conductor:
    """A server's API.

    Attributes:
        url: As in ``http://127.0.0.1:8080/api``.
    """

    url: str

    def get(self, path: str) -> Any:
        """What it answers, as JSON."""
        return self._call("GET", path)

    def task_definitions(self) -> list[dict[str, Any]]:
        """All task definitions. This answers once the server works; its ``/health`` does before."""
        definitions: list[dict[str, Any]] = self.get("/metadata/taskdefs")
        return definitions

    def workflow_definitions(self) -> list[dict[str, Any]]:
        """All workflow definitions."""
        definitions: list[dict[str, Any]] = self.get("/metadata/workflow")
        return definitions

    def pollers(self) -> list[dict[str, Any]]:
        """Who polled last, by kind of job and domain: ``queueName``, ``workerId``, ``lastPollTime``."""
        rows: list[dict[str, Any]] = self.get("/tasks/queue/polldata/all")
        return rows

    def workflow(self, workflow_id: str) -> dict[str, Any]:
        """A run of a workflow, with its tasks."""
        found: dict[str, Any] = self.get(f"/workflow/{quote(workflow_id)}?includeTasks=true")
        return found

    def newest(self, number: int) -> list[str]:
        """Ids of the workflows that were started last, also of those that have ended; none without an index."""
        try:
            found = self.get(f"/workflow/search?start=0&size={number}&sort=startTime:DESC")
        except ConductorUnavailable:
            return []
        return [each["workflowId"] for each in found["results"]]

    def running(self) -> list[str]:
        """Ids of the workflows that run; none where the server does not tell."""
        names = {definition["name"] for definition in self.workflow_definitions()}
        return [id for name in sorted(names) for id in self._running(name)]

    def retry(self, workflow_id: str) -> None:
        """Have what ended badly be executed again."""
        self._call("POST", f"/workflow/{quote(workflow_id)}/retry")

    def _running(self, name: str) -> list[str]:
        try:
            found: list[str] = self.get(f"/workflow/running/{quote(name)}")
        except ConductorUnavailable:  # a server without this call
            return []
        return found

    def _call(self, method: str, path: str) -> Any:
        request = urllib.request.Request(f"{self.url.rstrip('/')}{path}", method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_SECONDS) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            kind = NotThere if error.code == HTTPStatus.NOT_FOUND else ConductorUnavailable
            raise kind(f"{self.url} answered {error.code} to {path}: {said}") from None
        except (OSError, ValueError) as error:
            raise ConductorUnavailable(f"no Conductor answers at {self.url}: {error}") from None
        return json.loads(body) if body else None
