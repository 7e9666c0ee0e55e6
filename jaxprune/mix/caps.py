"""Caps: the largest proportion that a domain may have in a mixture.

A cap is epochs allowed x tokens of the domain / tokens of the run; what is above it repeats the domain more often.

Legend: K domains, M mixtures.
"""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-9  # that the sum of caps may lack to 1


def checked(cap_K: np.ndarray | None, n_domains: int) -> np.ndarray:
    """The caps as float64 [K], none above 1; None: all 1.

    Raises:
      ValueError: not one for each of 2 or more domains, one below 0, or a sum less than 1.
    """
    cap_K = np.minimum(np.ones(n_domains) if cap_K is None else np.asarray(cap_K, np.float64), 1.0)
    if cap_K.shape != (n_domains,) or n_domains < 2:
        raise ValueError(
            f"cap_K has the shape {cap_K.shape} for {n_domains} domains: give one cap for each of 2 or more"
        )
    if not (cap_K >= 0).all():
        raise ValueError(f"cap_K is {cap_K.tolist()}: caps must be 0 or more")
    if cap_K.sum() < 1 - ROUNDING:
        raise ValueError(
            f"the caps add up to {cap_K.sum():.3g}, less than 1: allow more epochs, or lower the budget"
        )
    return cap_K


def nearest(x_MK: np.ndarray, cap_K: np.ndarray) -> np.ndarray:
    """The mixtures under the caps that are nearest to given ones.

    They are min(cap, t x), with t for each such that it adds up to 1. Of all mixtures under the caps that one has the
    least KL divergence from x: the ratios of domains below their caps stay what they were, and so does 0.

    Args:
      x_MK: mixtures, or weights of any sum above 0; the caps of the domains above 0 must add up to 1 or more.
      cap_K: as `checked`.

    Returns:
      Mixtures, float64 [M, K].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        full_MK = np.where(x_MK > 0, cap_K / x_MK, np.inf)  # the t from which a domain is at its cap
    order_MK = np.argsort(full_MK, axis=1)
    full_MK, sorted_MK = (np.take_along_axis(values, order_MK, axis=1) for values in (full_MK, x_MK))
    sorted_cap_MK = cap_K[order_MK]
    before_MK = np.cumsum(sorted_cap_MK, axis=1) - sorted_cap_MK  # taken, if this is the first below its cap
    after_MK = np.cumsum(sorted_MK[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t_MK = (1 - before_MK) / after_MK
    fits_MK = (t_MK <= full_MK) & (sorted_MK > 0)
    first_M = np.argmax(fits_MK, axis=1)
    # None fits where the caps add up to 1 but for rounding: every domain is at its cap.
    t_M = np.where(fits_MK.any(axis=1), t_MK[np.arange(len(x_MK)), first_M], np.finfo(np.float64).max)
    with np.errstate(over="ignore"):
        return np.minimum(cap_K, t_M[:, None] * x_MK)
