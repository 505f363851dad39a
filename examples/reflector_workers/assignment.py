"""Who goes with whom, so that all together fit best (the Hungarian method)."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def best_pairs(weights: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """Pair left names with right ones, each at most once, for the largest sum of weights.

    Args:
        weights: By (left, right); a pair that is not there, or has no weight, is never made.
    """
    lefts, rights = sorted({left for left, _ in weights}), sorted({right for _, right in weights})
    size = max(len(lefts), len(rights))
    costs = [[0.0] * size for _ in range(size)]
    for (left, right), weight in weights.items():
        costs[lefts.index(left)][rights.index(right)] = -weight
    columns = cheapest(costs)
    pairs = {
        left: rights[column]
        for left, column in zip(lefts, columns, strict=False)
        if column < len(rights)
    }
    return {left: right for left, right in pairs.items() if weights.get((left, right))}


def cheapest(costs: Sequence[Sequence[float]]) -> list[int]:
    """The column of each row of a square matrix, all different, for the smallest sum.

    Source:
        Kuhn 1955, Munkres 1957; rows are added one by one along shortest paths, O(n³).
    """
    matching = _Matching(costs)
    for row in range(len(costs)):
        matching.add(row)
    return [matching.row_in.index(row) for row in range(len(costs))]


class _Matching:
    """The cheapest matching of the rows that were added so far.

    Attributes:
        row_in: The row of each column, or `size`, which is none. There is one column more, to start
            from.
    """

    def __init__(self, costs: Sequence[Sequence[float]]) -> None:
        self.size = len(costs)
        self.row_in = [self.size] * (self.size + 1)
        self._costs = costs
        self._of_row, self._of_column = [0.0] * (self.size + 1), [0.0] * (self.size + 1)

    def add(self, row: int) -> None:
        """Find the cheapest way to a free column, and move everybody on it by one."""
        self.row_in[self.size] = row
        slack, before = [inf] * self.size, [self.size] * self.size
        column, reached = self.size, [self.size]
        left = set(range(self.size))
        while self.row_in[column] != self.size:
            self._relax(column, left, slack, before)
            nearest = min(left, key=slack.__getitem__)
            self._shift(slack[nearest], reached, left, slack)
            column = nearest
            reached.append(column)
            left.remove(column)
        while column != self.size:
            self.row_in[column] = self.row_in[before[column]]
            column = before[column]

    def _relax(self, column: int, left: set[int], slack: list[float], before: list[int]) -> None:
        row = self.row_in[column]
        for other in left:
            reduced = self._costs[row][other] - self._of_row[row] - self._of_column[other]
            if reduced < slack[other]:
                slack[other], before[other] = reduced, column

    def _shift(self, delta: float, reached: list[int], left: set[int], slack: list[float]) -> None:
        for column in reached:
            self._of_row[self.row_in[column]] += delta
            self._of_column[column] -= delta
        for column in left:
            slack[column] -= delta
