"""The SDK's metrics, by a process that ends with its parent: the SDK's own goes on for ever if that is killed."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from conductor.client.telemetry.metrics_collector_base import MetricsCollectorBase

from loopsafe_db.integrations.conductor.process import is_orphan

if TYPE_CHECKING:
    from conductor.client.configuration.settings.metrics_settings import MetricsSettings

_LOOK_SECONDS = 0.2


def provide_metrics(settings: MetricsSettings) -> None:
    """Serve, or write, what all processes have counted; a process' whole work."""
    threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()
    MetricsCollectorBase.provide_metrics(settings)


def _end_with_the_parent(parent_pid: int) -> None:
    while not is_orphan(parent_pid):
        time.sleep(_LOOK_SECONDS)
    os._exit(0)
