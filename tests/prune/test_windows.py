import numpy as np
import pytest

from jaxprune.prune.windows import batches, cut, row_lengths


@pytest.mark.parametrize("context", [1, 16, 64, 100, 256, 2048, 4096])
def test_row_lengths_end_at_the_context_and_are_few(context):
    lengths = np.array(row_lengths(context))
    assert lengths[-1] == context and (np.diff(lengths) > 0).all()
    assert (lengths[:-1] % 64 == 0).all() and len(lengths) <= 20
    # A row is padded by less than a fifth, or by less than the tile that it is rounded to.
    assert (lengths[1:] <= 1.2 * lengths[:-1] + 64).all()


def test_windows_cover_every_target_once():
    lengths = np.array([1, 2, 10, 11, 12, 21, 35])  # stored tokens; the first document has no text
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    numbers = np.array([6, 0, 3, 4, 1])
    windows = cut(offsets, numbers, 10)
    assert windows.length_W.tolist() == [10, 10, 10, 4, 10, 10, 1, 1]
    assert windows.document_W.tolist() == [0, 0, 0, 0, 2, 3, 3, 4]
    targets = [
        target
        for begin, length in zip(windows.begin_W, windows.length_W, strict=True)
        for target in range(begin + 1, begin + length + 1)
    ]
    wanted = [target for number in numbers for target in range(offsets[number] + 1, offsets[number + 1])]
    assert targets == wanted


@pytest.mark.parametrize("overlap", range(10))
def test_overlapping_windows_count_every_target_once_in_as_much_context_as_fits(overlap):
    context = 10
    lengths = np.arange(1, 45)  # stored tokens
    offsets = np.concatenate([[7], 7 + np.cumsum(lengths)])
    numbers = np.random.default_rng(0).permutation(len(lengths))
    windows = cut(offsets, numbers, context, overlap)
    counted = {int(number): [] for number in numbers}
    for document, begin, start, length in zip(
        windows.document_W, windows.begin_W, windows.start_W, windows.length_W, strict=True
    ):
        number = int(numbers[document])
        assert begin >= offsets[number] and 0 <= start < length <= context
        assert start == (0 if begin == offsets[number] else overlap)
        counted[number] += range(begin + start + 1, begin + length + 1)
    assert counted == {n: list(range(offsets[n] + 1, offsets[n + 1])) for n in counted}
    whole = windows.length_W[np.append(np.diff(windows.document_W) == 0, False)]
    assert (whole == context).all()  # all but the last of a document


def test_windows_of_documents_are_their_first():
    offsets = np.array([0, 1, 26, 36, 40])  # the first document has no text
    first = cut(offsets, np.array([3, 1, 0, 2]), 10, 4).of_documents()
    assert first.document_W.tolist() == [0, 1, 3]
    assert first.begin_W.tolist() == [36, 1, 26]
    assert first.length_W.tolist() == [3, 10, 9] and first.start_W.tolist() == [0, 0, 0]


@pytest.mark.parametrize("overlap", [0, 100])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("batch_tokens", [1, 700, 5000])
def test_batches_hold_every_window_once_in_one_shape_a_length(parts, batch_tokens, overlap):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 500, 80)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(1, 1000, offsets[-1]).astype(np.uint16)
    windows = cut(offsets, np.arange(80), 256, overlap)
    seen, shapes = [], set()
    for batch in batches(tokens, windows, context=256, batch_tokens=batch_tokens, parts=parts):
        rows, length = batch.tokens_BS.shape[0], batch.tokens_BS.shape[1] - 1
        shapes.add((rows, length))
        assert rows % parts == 0 and (rows * length <= batch_tokens or rows == parts)
        assert (batch.length_B[len(batch.window_W) :] == 0).all()
        assert (batch.start_B[: len(batch.window_W)] == windows.start_W[batch.window_W]).all()
        for row, window in enumerate(batch.window_W):
            begin, n = windows.begin_W[window], windows.length_W[window]
            assert batch.length_B[row] == n
            assert (batch.tokens_BS[row, : n + 1] == tokens[begin : begin + n + 1]).all()
        seen += batch.window_W.tolist()
    assert sorted(seen) == list(range(len(windows.length_W)))
    assert len({length for _, length in shapes}) == len(shapes)
