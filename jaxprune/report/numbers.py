"""How the report writes numbers: three digits that matter, a unit, a true minus sign."""

from __future__ import annotations

import math


def short(number: float) -> str:
    """12,345,678 as `12.3M`; below ten thousand with all its digits."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= (1e4 if unit == "k" else size):
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:.3g}"


def count(number: int) -> str:
    """All digits: `12,345,678`."""
    return f"{number:,}"


def percent(share: float) -> str:
    """`0.4711` as `47 %`; shares below a tenth keep two digits."""
    digits = f"{100 * share:.0f}" if share >= 0.0995 or share == 0 else f"{100 * share:.2g}"
    return f"{digits} %"


def perplexity(nll: float | None) -> str:
    """The perplexity of an NLL in nats, with three digits: `6.21`, `48.3`, `1,204`."""
    if nll is None:
        return "–"
    value = math.exp(nll)
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def score(value: float | None, unit: str | None) -> str:
    """A signal with four digits; where `unit` is None it is NLL in nats per token, and its perplexity is written."""
    if value is None or unit is None:
        return perplexity(value)
    return f"{value:.4g}".replace("-", "−")


def decimals(value: float, digits: int = 3) -> str:
    """A fixed number of decimals."""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign: `+0.012`, `−0.012`, and `0.000` where nothing is left of it."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'−' if value < 0 else '+'}{text}"


def duration(seconds: float) -> str:
    """`0.4 s`, `48 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def scientific(number: float) -> str:
    """`1.23 × 10¹⁵`."""
    power = math.floor(math.log10(number)) if number > 0 else 0
    exponent = str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"{number / 10**power:.2f} × 10{exponent}"
