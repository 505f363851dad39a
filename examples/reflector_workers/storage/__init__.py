"""What the jobs keep in PostgreSQL, behind controllers like Reflector's own.

A controller takes its database by `loopsafe_db.get_database` inside each method, and nowhere is a
database handed on. Conductor delivers a job at least once, so every write may happen twice: rows
are keyed by (workflow instance, task reference), the only name that retry and rerun leave a job.
"""
