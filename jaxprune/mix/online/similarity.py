"""How near one method's A is to another's: what the LMO analysis measures (Chen et al., arXiv 2411.05735, section 5).

Legend: K domains.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def similarity(ours_KK: np.ndarray, theirs_KK: np.ndarray) -> float:
    """Half the cosine and half the rank correlation of the column sums, from which weights follow: from -1 to 1.

    Rows are domains whose loss was measured, columns those trained on.
    """
    ours_K, theirs_K = ours_KK.sum(axis=0), theirs_KK.sum(axis=0)
    cosine = ours_K @ theirs_K / (np.linalg.norm(ours_K) * np.linalg.norm(theirs_K))
    rank_correlation = np.corrcoef(rankdata(ours_K), rankdata(theirs_K))[0, 1]
    return float(0.5 * cosine + 0.5 * rank_correlation)
