"""Student's t: how many standard errors a 95 % interval of a mean reaches to either side."""

_T = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
    12: 2.201,
    16: 2.131,
    24: 2.069,
}


def students(number: int) -> float:
    """For the mean of so many values, 2 at least; of the next smaller number in the table, which is too wide rather than too narrow."""
    return min(_T[n] for n in _T if n <= number) if number < 48 else 2.012
