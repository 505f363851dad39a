"""One module per kind of job; each takes its database by `loopsafe_db.get_database`, no other way.

What crosses JSON is checked and converted by ``@checked``, below the SDK's decorator.
"""
