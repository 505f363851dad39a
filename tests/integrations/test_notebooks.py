"""The cells of the how-to on notebooks, one after another in one loop, as a kernel runs them."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from loopsafe_db import configure
from tests.docs.test_docs import ROOT, fences

CELLS = fences(ROOT / "docs/how-to/notebooks.md", "python cell")


async def run_cell(text: str, names: dict[str, Any]) -> Any:
    """Give the value of the last expression, as IPython does: what it compiles may await."""
    tree = ast.parse(text)
    assert isinstance(tree.body[-1], ast.Expr)
    target = ast.Name("_", ast.Store())
    tree.body[-1] = ast.copy_location(ast.Assign([target], tree.body[-1].value), tree.body[-1])
    code = compile(ast.fix_missing_locations(tree), "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = eval(code, names)
    if inspect.isawaitable(waiting):
        await waiting
    return names["_"]


async def test_the_cells_give_what_the_page_says(postgres_url: str) -> None:
    configure(postgres_url)
    names: dict[str, Any] = {}

    given = [await run_cell(cell, names) for cell in CELLS]

    squares = [{"n": n, "square": n * n} for n in (1, 2, 3)]
    assert given == [42, [1, 2], squares]
    await names["db"].disconnect()
