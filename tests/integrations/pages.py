"""The code of a how-to page, as a module: what a reader copies is what these tests run."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

from tests.docs.test_docs import ROOT, fences


def code_of(page: str, kind: str = "python run", number: int = 0) -> str:
    """Give one code block of ``docs/how-to/PAGE.md``."""
    return fences(ROOT / f"docs/how-to/{page}.md", kind)[number]


@cache
def module_of(page: str) -> ModuleType:
    """Run the first block of a page, once per process: its tables cannot be declared twice."""
    module = ModuleType(f"page_{page.replace('-', '_')}")
    sys.modules[module.__name__] = module  # where pydantic and SQLAlchemy look names up
    exec(compile(code_of(page), f"docs/how-to/{page}.md", "exec"), module.__dict__)
    return module
