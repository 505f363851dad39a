"""One module per kind of job; each takes its database by `loopsafe_db.get_database`, no other way.

No module here may say ``from __future__ import annotations``: the SDK reads the annotations of a
worker's parameters as they are, and fails every job whose annotations are texts. What crosses JSON
arrives as ``int``, ``str`` or ``object``, which the SDK leaves alone, and `domain.from_json` makes
domain objects of it.
"""
