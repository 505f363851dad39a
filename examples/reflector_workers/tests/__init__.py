"""How a program like this one is tested: on the fixtures of ``loopsafe-db[pytest]``, with nothing to clean up."""
