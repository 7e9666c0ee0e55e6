"""Linear algebra of small matrices, on one thread."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS runs on one thread in the block, or in the function that this decorates.

    Matrices of tens or hundreds of rows are decomposed fifty times slower where threads wait for cores that others use; and
    numbers then do not depend on how many cores there are.
    """
    with _blas().limit(limits=1):
        yield


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # of what numpy and scipy have loaded by then
