"""Documents as rows of a few lengths: what a scoring model is given.

A document is cut into windows of at most `context` targets. Window w reads stored tokens wR to wR + T
and predicts each but the first; the stride R is the context less the overlap. The first `overlap`
targets of every window but a document's first were targets before and are context only, so that every
token of the text counts exactly once. A row holds one window and is padded on the right to the next of
a few lengths; each length has a fixed number of rows to a batch, so that it is compiled once, and the
sums for a window are bitwise the same whatever else is in its batch.

Legend: N documents, W windows, B rows of a batch, T positions, S = T + 1 tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Between lengths. With full batches 6 to 8 % of the computed tokens are padding, in 16 shapes at 2,048; the
# last batch of each length is not full, which adds 16 / 2 batches to a shard: make shards large beside batches.
_STEP = 1.2
_MULTIPLE = 64  # of every length but the context, for the kernels' tiles


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Where the windows of some documents are, in the documents' order."""

    document_W: np.ndarray  # position among the documents
    begin_W: np.ndarray  # first token in the store
    start_W: np.ndarray  # targets that count begin here
    length_W: np.ndarray  # targets; the window takes one token more

    def of_documents(self) -> Windows:
        """The first window of each document that has any."""
        first_W = np.diff(self.document_W, prepend=-1) != 0
        return Windows(**{name: values[first_W] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one length; those behind the windows are empty."""

    window_W: np.ndarray  # the windows in the first rows
    tokens_BS: np.ndarray  # int32
    start_B: np.ndarray  # int32, targets before it do not count
    length_B: np.ndarray  # int32, targets from it on do not count either; 0 in empty rows


def row_lengths(context: int) -> tuple[int, ...]:
    """The row lengths in use, ascending: the context, and steps of 1.2 down from it."""
    lengths, length = {context}, float(context)
    while length > _MULTIPLE:
        length /= _STEP
        lengths.add(min(context, -(-int(np.ceil(length)) // _MULTIPLE) * _MULTIPLE))
    return tuple(sorted(lengths))


def cut(offsets_N1: np.ndarray, numbers: np.ndarray, context: int, overlap: int = 0) -> Windows:
    """The windows of the documents `numbers` of a store with these offsets; `overlap` is less than `context`."""
    begin_N = offsets_N1[numbers]
    n_tokens_N = offsets_N1[numbers + 1] - begin_N - 1
    stride = context - overlap
    n_windows_N = np.where(n_tokens_N > 0, 1 + np.maximum(-(-(n_tokens_N - context) // stride), 0), 0)
    document_W = np.repeat(np.arange(len(numbers)), n_windows_N)
    first_N = np.cumsum(n_windows_N) - n_windows_N
    before_W = (np.arange(len(document_W)) - first_N[document_W]) * stride
    return Windows(
        document_W=document_W,
        begin_W=begin_N[document_W] + before_W,
        start_W=np.where(before_W > 0, overlap, 0),
        length_W=np.minimum(context, n_tokens_N[document_W] - before_W),
    )


def batches(
    tokens: np.ndarray, windows: Windows, *, context: int, batch_tokens: int, parts: int
) -> Iterator[Batch]:
    """Every window once, in batches of one length; the longest first, so that memory runs out early.

    Args:
      tokens: the store's tokens.
      windows: of the documents to score.
      context: the longest row.
      batch_tokens: tokens of a batch, padding included; one row a part where that is more.
      parts: devices that share the rows, which are a multiple of it.
    """
    lengths = np.array(row_lengths(context))
    kind_W = np.searchsorted(lengths, windows.length_W)
    for kind in range(len(lengths) - 1, -1, -1):
        length = int(lengths[kind])
        rows = max(batch_tokens // length // parts, 1) * parts
        mine = np.flatnonzero(kind_W == kind)
        for start in range(0, len(mine), rows):
            window_W = mine[start : start + rows]
            start_B, length_B = np.zeros((2, rows), np.int32)
            start_B[: len(window_W)] = windows.start_W[window_W]
            length_B[: len(window_W)] = windows.length_W[window_W]
            tokens_BS = np.zeros((rows, length + 1), np.int32)
            for row, begin, targets in zip(tokens_BS, windows.begin_W[window_W], length_B, strict=False):
                row[: targets + 1] = tokens[begin : begin + targets + 1]
            yield Batch(window_W=window_W, tokens_BS=tokens_BS, start_B=start_B, length_B=length_B)
