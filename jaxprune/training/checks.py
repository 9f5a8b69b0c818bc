"""Checks of single settings, each a `ValueError` with the value and what was allowed."""

import math


def whole_number(name: str, value: int, *, least: int) -> int:
    """Returns a whole number of at least `least`. Raises `ValueError` for another value."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return value


def share(name: str, value: float, *, most: float) -> float:
    """Returns a value in [0, most]. Raises `ValueError` for another."""
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be between 0 and {most:g}")
    return value


def below_one(name: str, value: float) -> float:
    """Returns a value in [0, 1). Raises `ValueError` for another."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
    return value


def factor(name: str, value: float) -> float:
    """Returns a value in (0, 1]. Raises `ValueError` for another."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}; it must be greater than 0 and at most 1")
    return value


def not_negative(name: str, value: float) -> float:
    """Returns a finite value of at least 0. Raises `ValueError` for another."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be 0 or more")
    return value


def distinct(name: str, values: tuple[int, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} {values} names one twice; each may occur once")
