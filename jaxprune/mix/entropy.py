"""Entropy proxies: how varied each domain's text is, and the mixtures that follow without training.

Source: BiMix (arXiv 2405.14908v4), section 4 and appendix A. A domain's documents, end to end, are cut into
sequences; with the frequencies P of its bigrams (x, x') inside sequences, in nats:

    Shannon      SE = -sum P(x) ln P(x)            P(x) = sum_x' P(x, x')
    joint        JE = -sum P(x, x') ln P(x, x')
    conditional  CE = -sum P(x, x') ln P(x' | x) = JE - SE
    von Neumann  VNE = -Tr(rho ln rho)             rho = sum_j v_j v_j' / N, of documents' vectors v of length 1

and proportions exp(H_i) / sum_j exp(H_j). P(x) is over the heads of bigrams, which leaves out the last token of every
sequence: only so is the chain rule exact. An end-of-document token stands in front of each document, so which
document comes after which matters only where sequences are cut.

Counted entropies are too low, the more so the fewer the tokens: of 10^6 tokens few of the possible bigrams
occur. The Miller-Madow correction adds (different ones - 1) / (2 x counted), which is the first-order bias of
those that occur and knows nothing of those that do not. So give every domain the same `max_tokens` too, best
what the smallest one has.

Legend: K domains, N documents, B documents of a block, D dimensions, V vocabulary, U different bigrams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.mix import bigrams
from jaxprune.progress import Meter, meter
from jaxprune.prune.signals import hashed

Kind = Literal["shannon", "conditional", "joint", "von_neumann"]

_DIMENSIONS = 300  # of the vectors, as in the paper
_BLOCK = 4096  # given vectors that are read at once


@dataclass(frozen=True, kw_only=True)
class Entropies:
    """Entropies of the domains, in nats; NaN where a domain has no document."""

    domains: tuple[str, ...]
    tokens_K: np.ndarray  # int64, that were read
    bigrams_K: np.ndarray  # int64, that were counted
    different_K: np.ndarray  # int64, bigrams that occur
    shannon_K: np.ndarray
    conditional_K: np.ndarray
    joint_K: np.ndarray
    von_neumann_K: np.ndarray

    def proportions(self, kind: Kind) -> dict[str, float]:
        """Weights exp(H) / sum exp(H), which add up to 1; 0 for a domain without documents.

        Raises:
          ValueError: no such kind, or no domain has a document.
        """
        values = {
            "shannon": self.shannon_K,
            "conditional": self.conditional_K,
            "joint": self.joint_K,
            "von_neumann": self.von_neumann_K,
        }
        if kind not in values:
            raise ValueError(f"kind is {kind}, which is none of {', '.join(values)}: name one of them")
        entropy_K = values[kind]
        if np.isnan(entropy_K).all():
            raise ValueError("no domain has a document: give some")
        weight_K = np.nan_to_num(np.exp(entropy_K - np.nanmax(entropy_K)))
        return dict(zip(self.domains, (weight_K / weight_K.sum()).tolist(), strict=True))


def entropies(
    store: TokenStore,
    documents: np.ndarray | None = None,
    *,
    sequence: int = 1024,
    max_tokens: int | None = None,
    max_documents: int = 10_000,
    miller_madow: bool = True,
    vectors: np.ndarray | None = None,
    seed: int = 0,
) -> Entropies:
    """Measures the domains of a store, in the memory that `bigrams` says.

    Args:
      store: the tokens.
      documents: numbers of the documents to measure, ascending; None: all that may be trained on.
      sequence: tokens of a sequence.
      max_tokens: most tokens of a domain for SE, JE and CE, from documents drawn at random; None: all.
      max_documents: most documents of a domain for VNE, drawn at random.
      miller_madow: correct SE and JE (and so CE) for small samples.
      vectors: one for each of `documents`, [N, D], of any length but 0; None: hashed unigrams and bigrams, 300-d.
      seed: of the draw of documents.

    Raises:
      ValueError: an argument out of range, or vectors that do not fit the documents.
    """
    numbers = store.documents(TRAIN) if documents is None else np.asarray(documents, np.int64)
    _check(sequence, max_tokens, max_documents, vectors, len(numbers))
    domain_N, n_domains = store.domain_N[numbers], len(store.domains)
    rngs = [np.random.default_rng((seed, k)) for k in range(n_domains)]
    samples = [_sample(store, numbers[domain_N == k], max_tokens, rng) for k, rng in enumerate(rngs)]
    places = [_draw(np.flatnonzero(domain_N == k), max_documents, rng) for k, rng in enumerate(rngs)]
    tokens_K = np.array([_length(store, sample) for sample in samples])
    tokens_K = tokens_K if max_tokens is None else np.minimum(tokens_K, max_tokens)
    counted = np.zeros((n_domains, 2), np.int64)
    shannon_K, joint_K, von_neumann_K = np.full((3, n_domains), np.nan)
    with meter("entropies: bigrams", int(tokens_K.sum()), "tokens") as progress:
        for k in np.flatnonzero(tokens_K):
            pieces = _pieces(store, samples[k], int(tokens_K[k]), sequence, progress)
            *counted[k], shannon_K[k], joint_K[k] = _shannon_and_joint(
                pieces, sequence, store.vocab_size, miller_madow
            )
    embed = hashed.embedder(store, _DIMENSIONS)
    with meter("entropies: vectors", sum(map(len, places)), "documents") as progress:
        for k, place_N in enumerate(places):
            blocks = embed(numbers[place_N]) if vectors is None else _blocks(vectors, place_N)
            von_neumann_K[k] = von_neumann(_metered(blocks, progress))
    return Entropies(
        domains=store.domains,
        tokens_K=tokens_K,
        bigrams_K=counted[:, 0],
        different_K=counted[:, 1],
        shannon_K=shannon_K,
        conditional_K=joint_K - shannon_K,
        joint_K=joint_K,
        von_neumann_K=von_neumann_K,
    )


def von_neumann(vectors: Iterable[np.ndarray]) -> float:
    """-Tr(rho ln rho) in nats, rho the mean of v v' over vectors v, each divided by its length; NaN of none.

    Its exponential, the Vendi score, is how many documents that share nothing would be as varied. rho is D x D and
    has the same eigenvalues above 0 as the N x N matrix of cosines over N.

    Args:
      vectors: blocks of vectors, [B, D]; those of length 0 do not count.
    """
    gram_DD, n_vectors = 0.0, 0
    for block_BD in vectors:
        length_B = np.linalg.norm(block_BD, axis=1)
        unit_BD = np.asarray(block_BD, np.float64)[length_B > 0] / length_B[length_B > 0, None]
        gram_DD = gram_DD + unit_BD.T @ unit_BD
        n_vectors += len(unit_BD)
    if n_vectors == 0:
        return np.nan
    eigenvalue_D = np.linalg.eigvalsh(gram_DD / n_vectors)
    positive = eigenvalue_D[eigenvalue_D > 0]
    return float(max(-(positive * np.log(positive)).sum(), 0.0))


def _shannon_and_joint(
    pieces: Iterable[np.ndarray], sequence: int, vocab_size: int, miller_madow: bool
) -> tuple[int, int, float, float]:
    """Bigrams, different bigrams, SE and JE of a domain; without bigrams both are 0: nothing is uncertain."""
    head_V, n_different, sum_c_log_c = np.zeros(vocab_size), 0, 0.0
    for bigram_U, count_U in bigrams.counts(pieces, sequence, vocab_size):
        head = (bigram_U // np.uint64(vocab_size)).astype(np.int64)
        head_V += np.bincount(head, count_U, vocab_size)  # exact: whole numbers below 2^53
        sum_c_log_c += float((count_U * np.log(count_U)).sum())
        n_different += len(bigram_U)
    n_bigrams = int(head_V.sum())
    if n_bigrams == 0:
        return 0, 0, 0.0, 0.0
    head_U = head_V[head_V > 0]
    values = []
    for c_log_c, different in (
        (float((head_U * np.log(head_U)).sum()), len(head_U)),
        (sum_c_log_c, n_different),
    ):
        correction = (different - 1) / (2 * n_bigrams) if miller_madow else 0.0
        values.append(max(np.log(n_bigrams) - c_log_c / n_bigrams, 0.0) + correction)
    return n_bigrams, n_different, values[0], values[1]


def _sample(
    store: TokenStore, numbers: np.ndarray, max_tokens: int | None, rng: np.random.Generator
) -> np.ndarray:
    """As many random documents as hold `max_tokens` stored tokens, ascending."""
    if max_tokens is None:
        return numbers
    drawn = rng.permutation(numbers)
    end_N = np.cumsum(store.offsets_N1[drawn + 1] - store.offsets_N1[drawn])
    return np.sort(drawn[: np.searchsorted(end_N, max_tokens) + 1])


def _draw(place_N: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.permutation(place_N)[:most])


def _length(store: TokenStore, numbers: np.ndarray) -> int:
    return int((store.offsets_N1[numbers + 1] - store.offsets_N1[numbers]).sum())


def _pieces(
    store: TokenStore, numbers: np.ndarray, n_tokens: int, sequence: int, progress: Meter
) -> Iterator[np.ndarray]:
    """The first `n_tokens` stored tokens of documents, end to end, in pieces of whole sequences."""
    size = max(bigrams.CHUNK // sequence, 1) * sequence
    begin_N, end_N = store.offsets_N1[numbers], store.offsets_N1[numbers + 1]
    is_first = np.append(True, begin_N[1:] != end_N[:-1])  # documents that are neighbours are read at once
    begin_N, end_N = begin_N[is_first], end_N[np.append(is_first[1:], True)]
    piece, room = [], min(size, n_tokens)
    for begin, end in zip(begin_N.tolist(), end_N.tolist(), strict=True):
        while begin < end and room > 0:
            part = store.tokens[begin : min(end, begin + room)]
            piece.append(part)
            begin += len(part)
            room -= len(part)
            n_tokens -= len(part)
            if room == 0:
                yield np.concatenate(piece)
                progress.add(sum(map(len, piece)))
                piece, room = [], min(size, n_tokens)


def _blocks(vectors: np.ndarray, place_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Given vectors in the way that `hashed.Embed` yields made ones."""
    for begin in range(0, len(place_N), _BLOCK):
        place_B = place_N[begin : begin + _BLOCK]
        yield place_B, vectors[place_B]


def _metered(blocks: Iterable[tuple[np.ndarray, np.ndarray]], progress: Meter) -> Iterator[np.ndarray]:
    for _, x_BD in blocks:
        yield x_BD
        progress.add(len(x_BD))


def _check(
    sequence: int, max_tokens: int | None, max_documents: int, vectors: np.ndarray | None, n_documents: int
) -> None:
    if sequence < 2:
        raise ValueError(f"sequence is {sequence}: a bigram takes 2 tokens, set 2 or more")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: set 1 or more, or None for all")
    if max_documents < 1:
        raise ValueError(f"max_documents is {max_documents}: set 1 or more")
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != n_documents):
        raise ValueError(
            f"vectors has the shape {vectors.shape} for {n_documents} documents: give one vector for each"
        )
