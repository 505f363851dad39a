CREATE SCHEMA IF NOT EXISTS reflector;

CREATE TABLE IF NOT EXISTS reflector.meetings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow_instance_id text NOT NULL,
    reference_task_name text NOT NULL,
    name text NOT NULL,
    folder text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workflow_instance_id, reference_task_name)
);

CREATE TABLE IF NOT EXISTS reflector.tracks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    meeting_id bigint NOT NULL REFERENCES reflector.meetings ON DELETE CASCADE,
    position integer NOT NULL,
    speaker text NOT NULL,
    path text NOT NULL,
    duration double precision NOT NULL,
    UNIQUE (meeting_id, position)
);

ALTER TABLE reflector.tracks
    ADD COLUMN IF NOT EXISTS damaged integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS starts_at double precision NOT NULL DEFAULT 0;

CREATE TABLE IF NOT EXISTS reflector.segments (
    workflow_instance_id text NOT NULL,
    reference_task_name text NOT NULL,
    position integer NOT NULL,
    track_id bigint NOT NULL REFERENCES reflector.tracks ON DELETE CASCADE,
    starts_at double precision NOT NULL,
    ends_at double precision NOT NULL CHECK (ends_at > starts_at),
    PRIMARY KEY (workflow_instance_id, reference_task_name, position)
);

CREATE INDEX IF NOT EXISTS segments_by_track ON reflector.segments (track_id);

CREATE TABLE IF NOT EXISTS reflector.turns (
    workflow_instance_id text NOT NULL,
    reference_task_name text NOT NULL,
    position integer NOT NULL,
    meeting_id bigint NOT NULL REFERENCES reflector.meetings ON DELETE CASCADE,
    speaker text NOT NULL,
    starts_at double precision NOT NULL,
    ends_at double precision NOT NULL CHECK (ends_at > starts_at),
    PRIMARY KEY (workflow_instance_id, reference_task_name, position)
);

CREATE INDEX IF NOT EXISTS turns_by_meeting ON reflector.turns (meeting_id);

CREATE TABLE IF NOT EXISTS reflector.outputs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow_instance_id text NOT NULL,
    reference_task_name text NOT NULL,
    kind text NOT NULL,
    meeting_id bigint NOT NULL REFERENCES reflector.meetings ON DELETE CASCADE,
    content text NOT NULL,
    UNIQUE (workflow_instance_id, reference_task_name, kind)
);

CREATE TABLE IF NOT EXISTS reflector.job_log (
    execution_id uuid PRIMARY KEY,
    workflow_instance_id text NOT NULL,
    reference_task_name text NOT NULL,
    job_type text NOT NULL,
    worker_id text NOT NULL,
    pid integer NOT NULL,
    thread text NOT NULL,
    backend_pid integer NOT NULL DEFAULT pg_backend_pid(),
    finished_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS job_log_by_workflow ON reflector.job_log (workflow_instance_id);
