"""What tests of code on loopsafe_db need: a real PostgreSQL, and the suite that drivers pass.

Nothing here is imported by the library itself, and importing it starts nothing.
"""
