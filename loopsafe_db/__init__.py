"""Async database access that is right in every event loop, thread and process."""
