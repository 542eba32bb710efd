"""Mean, standard deviation and intervals over seeds, in words: the one place for them."""

import math
import statistics
from collections.abc import Sequence


def mean_std(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    """Mean, with the standard deviation where there are several values; a dash for none."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}{unit}"


def difference(pairs: Sequence[tuple[float, float]]) -> str:
    """Mean of a - b over `pairs`, ± the half-width of its 95 % interval; a dash for none."""
    if not pairs:
        return "-"
    mean, half = paired_t_interval([a - b for a, b in pairs])
    mean = round(mean, 1) + 0.0  # no "-0.0"
    return f"{mean:+.1f} (one pair)" if half is None else f"{mean:+.1f} ± {half:.1f}"


def paired_t_interval(differences: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half-width of its 95 % interval (Student's t): None for one difference."""
    mean, count = statistics.mean(differences), len(differences)
    if count < 2:
        return mean, None
    return mean, t_quantile(count - 1) * statistics.stdev(differences) / math.sqrt(count)


def t_quantile(freedom: int) -> float:
    """Student's t, two-sided 95 %, for a whole number of degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, freedom) < 0.95 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _probability(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) tan(angle)): Abramowitz & Stegun 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 2, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    share = math.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share
