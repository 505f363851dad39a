"""Thin modules over other people's frameworks: each wants its package, and is imported by name only."""
