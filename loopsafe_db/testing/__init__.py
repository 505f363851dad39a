"""What tests of code on loopsafe_db need: a real PostgreSQL now; a conformance suite later.

Nothing here is imported by the library itself, and importing it starts nothing.
"""
