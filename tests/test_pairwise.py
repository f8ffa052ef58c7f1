"""The choice of combinations that other tests rely on."""

from itertools import combinations, product

from pairwise import pairwise

AXES = ("abcdefg", (1, 2, 3), (True, False), ("x", "y", "z", "w"))


def meetings(rows):
    return {(i, row[i], j, row[j]) for row in rows for i, j in combinations(range(len(row)), 2)}


def test_every_two_values_meet_in_few_rows():
    rows = pairwise(*AXES)
    assert meetings(rows) == meetings(product(*AXES))
    assert len(rows) <= 7 * 4
    assert rows == pairwise(*AXES)


def test_only_allowed_rows_are_chosen():
    def allowed(letter, number, flag, _):
        return not (letter == "a" and number != 3) and not (number == 1 and flag)

    rows = pairwise(*AXES, allowed=allowed)
    assert all(allowed(*row) for row in rows)
    assert meetings(rows) == meetings(row for row in product(*AXES) if allowed(*row))


def test_pairs_that_need_a_row_of_their_own_get_one():
    assert len(pairwise("a", (1, 2), (3, 4))) == 4
