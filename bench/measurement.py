"""What a measurement hands back: rows of the table, and what there is to say about them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


class Incomplete(Exception):
    """A measurement could not be taken; the message says why."""


@dataclass(frozen=True)
class Aim:
    """A bound from the project's design, and what it is compared with: the ratio, or our own figure."""

    text: str
    bound: float
    at_least: bool = True

    def is_met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Row:
    """One line of the table. `judged` is the figure that the aim is about; mostly the ratio."""

    work: str
    ours: str
    compared_with: str
    ratio: float | None = None
    aim: Aim | None = None
    judged: float | None = None

    @property
    def met(self) -> bool | None:
        value = self.ratio if self.judged is None else self.judged
        return None if self.aim is None or value is None else self.aim.is_met_by(value)


@dataclass
class Section:
    """A measurement's rows, how they were taken, and what bounds them."""

    title: str
    method: str
    rows: list[Row] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def spread(values: Sequence[float]) -> str:
    """The single runs behind a median, so that a reader sees how far they lie apart."""
    return ", ".join(significant(value) for value in values)


def significant(value: float) -> str:
    """Three figures, and thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def median(values: Sequence[float]) -> float:
    if not values:
        raise Incomplete("no run succeeded")
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all are not above."""
    ordered = sorted(values)
    if not ordered:
        raise Incomplete("nothing was observed")
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
