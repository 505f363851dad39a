"""SQLAlchemy engines: from a URL to the pool that a caller gets."""
