"""Few combinations instead of all: every two values still meet, in an order that is always the same."""

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import combinations, product
from typing import Any


def pairwise(
    first: Iterable[Any], *others: Iterable[Any], allowed: Callable[..., bool] = lambda *row: True
) -> list[tuple[Any, ...]]:
    """Rows, one value of each axis, in which every two values meet that meet in any allowed row.

    Each value of the first axis gets rows until it has met all others, and of rows that help equally those whose values met least often.
    """
    axes = [list(axis) for axis in others]
    met: Counter[Any] = Counter()
    chosen, left = [], []
    for value in first:
        rows = [row for row in product(*map(enumerate, axes)) if allowed(value, *(v for _, v in row))]
        marks = [[(axis, at) for axis, (at, _) in enumerate(row)] for row in rows]
        missing = {mark for row in marks for mark in row}
        while missing:
            best = max(
                range(len(rows)),
                key=lambda k: (len(missing.intersection(marks[k])), -sum(map(met.__getitem__, of_two(marks[k])))),
            )
            missing.difference_update(marks[best])
            met.update(of_two(marks[best]))
            chosen.append((value, *(v for _, v in rows[best])))
        left += [(of_two(mark), (value, *(v for _, v in row))) for mark, row in zip(marks, rows, strict=True)]
    for pairs, row in left:
        if any(not met[pair] for pair in pairs):
            met.update(pairs)
            chosen.append(row)
    return chosen


def of_two(marks: Iterable[Any]) -> list[tuple[Any, Any]]:
    return list(combinations(marks, 2))
