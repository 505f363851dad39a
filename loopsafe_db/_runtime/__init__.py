"""Processes and loops: keys, the registry, how lives end, and forks. Nothing here has heard of SQL."""
