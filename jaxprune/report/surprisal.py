"""How surprising each token of a document is: its text cut into the pieces that tokens stand for, and the
nats that each cost the scoring model.

Windows are those of the score (prune/windows.py), so that the nats of all tokens add up to its nll_sum.

Legend: N documents, W windows, B rows of a batch, S = T + 1 tokens of a row, P tokens of a document.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx

from jaxprune.data.tokenizer import Encoder
from jaxprune.model.loss import next_token_nll
from jaxprune.model.sharding import BATCH, ROWS, everywhere, put
from jaxprune.progress import Meter
from jaxprune.prune.score import Scorer
from jaxprune.prune.windows import batches, cut

_LOOKAHEAD = 3  # tokens of at least a byte each that complete a character of at most 4 bytes


def pieces(encoder: Encoder, token_P: np.ndarray) -> Iterator[tuple[str, int]]:
    """The text of tokens piece by piece, each with the number of tokens that it takes.

    Mostly one; tokens that share a character (which byte fallback splits) make one piece. The pieces joined
    are the text that all the tokens decode to: each is read behind the piece before it, as the first word of a
    text may lose its space, and ends where the tokens behind it only add text. The bytes of half a character
    are decoded to replacement characters, which what follows changes, or makes fewer.
    """
    before = begin = 0
    for end in range(1, len(token_P) + 1):
        text = encoder.decode(token_P[before:end])
        longer = (
            encoder.decode(token_P[before:further])
            for further in range(end + 1, min(end + _LOOKAHEAD, len(token_P)) + 1)
        )
        if all(more.startswith(text) and len(more) > len(text) for more in longer):
            yield text[len(encoder.decode(token_P[before:begin])) :], end - begin
            before, begin = begin, end


def beginning(encoder: Encoder, token_P: np.ndarray, characters: int) -> tuple[list[str], list[int]]:
    """The first pieces of a document that hold `characters` characters, or all, and the tokens of each."""
    texts: list[str] = []
    counts: list[int] = []
    room = characters
    for text, n_tokens in pieces(encoder, token_P):
        if room <= 0:
            break
        texts.append(text)
        counts.append(n_tokens)
        room -= len(text)
    return texts, counts


def token_nats(
    scorer: Scorer,
    tokens: np.ndarray,
    offsets_N1: np.ndarray,
    numbers: np.ndarray,
    first_N: np.ndarray,
    progress: Meter,
) -> list[np.ndarray]:
    """NLL in nats of the first tokens of documents, float64, a [P] for each.

    Args:
      scorer: the model that scored the documents.
      tokens, offsets_N1: stored documents end to end, as in a token store.
      numbers: of the documents, int64.
      first_N: how many text tokens of each are wanted.
      progress: told of the tokens as they are done.
    """
    begin_N = offsets_N1[numbers]
    nats = [np.empty(n_tokens) for n_tokens in first_N]
    windows = cut(offsets_N1, numbers, scorer.context, scorer.overlap)
    before_W = windows.begin_W - begin_N[windows.document_W]
    # A token sees only what is before it: windows end with the last that is wanted.
    length_W = np.minimum(windows.length_W, first_N[windows.document_W] - before_W)
    wanted_W = length_W > windows.start_W
    windows = dataclasses.replace(windows, length_W=length_W)
    windows = type(windows)(**{name: values[wanted_W] for name, values in vars(windows).items()})
    before_W = before_W[wanted_W]
    step = functools.partial(_step(scorer.graphdef), scorer.params)
    parts = int(np.prod([scorer.mesh.shape[axis] for axis in ROWS]))
    with jax.set_mesh(scorer.mesh):
        for batch in batches(
            tokens, windows, context=scorer.context, batch_tokens=scorer.batch_tokens, parts=parts
        ):
            nll_BT = np.asarray(everywhere(step(put(batch.tokens_BS, scorer.mesh, BATCH))))
            for window, nll_T in zip(batch.window_W.tolist(), nll_BT, strict=False):
                start, length = windows.start_W[window], windows.length_W[window]
                place = before_W[window]
                nats[windows.document_W[window]][place + start : place + length] = nll_T[start:length]
                progress.add(int(length - start))
    return nats


@functools.lru_cache(maxsize=1)
def _step(graphdef: nnx.GraphDef) -> Callable[[nnx.State, jax.Array], jax.Array]:
    @jax.jit
    def step(params: nnx.State, tokens_BS: jax.Array) -> jax.Array:
        return next_token_nll(nnx.merge(graphdef, params), tokens_BS)

    return step
