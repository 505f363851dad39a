"""A task of Celery."""

from __future__ import annotations

import os

import work
from celery import Celery

from loopsafe_db.integrations.celery import run_task

address = os.environ["REDIS_URL"].replace("unix://", "redis+socket://")
app = Celery("celery_jobs", broker=address, backend=address)


@app.task
def square(number):
    run_task(lambda job: work.square(number))
