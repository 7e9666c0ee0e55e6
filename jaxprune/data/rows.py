"""The training rows of every domain: its kept documents laid end to end and cut, without rewriting a token.

A document is taken as it is stored (end-of-document token, then its text). Row r of a domain covers
tokens r T to r T + T of the domain's documents in their order, so that consecutive rows share one
token and each token but the first is predicted exactly once; what is left at the end and shorter
than a row is no row. A row is found by a search in the running sum of lengths ("virtual packing").

Legend: B rows, T positions, S = T + 1 tokens of a row, K domains, N kept documents, P pieces of
documents that make up rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxprune.data.store import TokenStore

_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Rows as pieces of the store's tokens, to be read later."""

    domain_B: np.ndarray
    """Domain of each row."""
    begin_P: np.ndarray
    """First stored token of each piece of a document."""
    end_P: np.ndarray
    """Stored token behind each piece."""
    piece_B1: np.ndarray
    """Row b is made of pieces piece_B1[b] to piece_B1[b + 1]."""


class Rows:
    """The rows of all domains, in an order of their own in every epoch.

    The documents' order and the rows' order depend on nothing but the seed (not on the version of a
    library), and that of two documents not on which others are kept.

    Attributes:
      n_rows_K: int64, rows of each domain; 0 where its documents hold less than one row.
      n_tokens_K: int64, stored tokens of each domain's kept documents.
    """

    def __init__(self, store: TokenStore, documents: np.ndarray, *, context: int, seed: int) -> None:
        """Cuts `documents` (int, [N], numbers in the store, each once) into rows of `context` + 1 tokens.

        Raises:
          ValueError: a number is not one of the store's, or is there twice.
        """
        documents_N = np.asarray(documents, np.int64)
        if documents_N.size and not 0 <= documents_N.min() <= documents_N.max() < store.n_documents:
            raise ValueError(
                f"documents are numbered {documents_N.min()} to {documents_N.max()}, but the token store in "
                f"{store.folder} holds {store.n_documents}: select again from this store"
            )
        n_domains = len(store.domains)
        self.context = context
        self._store = store
        self._key_K = _mix(
            _mix(np.full(n_domains, seed % 2**64, np.uint64)) + np.arange(n_domains, dtype=np.uint64)
        )

        domain_N = np.asarray(store.domain_N)[documents_N]
        hash_N = _mix(documents_N.astype(np.uint64) ^ self._key_K[domain_N])
        order_N = np.argsort(hash_N, kind="stable")
        order_N = order_N[np.argsort(domain_N[order_N], kind="stable")]
        documents_N, domain_N = documents_N[order_N], domain_N[order_N]
        # Equal numbers have equal hashes and stand side by side; different ones of a domain never have.
        if (documents_N[1:] == documents_N[:-1]).any():
            twice = documents_N[1:][documents_N[1:] == documents_N[:-1]][0]
            raise ValueError(f"document {twice} is there twice: give each number once")

        begin_N, end_N = store.offsets_N1[documents_N], store.offsets_N1[documents_N + 1]
        self._edge_N1 = np.concatenate([[0], np.cumsum(end_N - begin_N, dtype=np.int64)])
        self._shift_N = begin_N - self._edge_N1[:-1]
        edge_K1 = self._edge_N1[np.searchsorted(domain_N, np.arange(n_domains + 1))]
        self._first_K = edge_K1[:-1]
        self.n_tokens_K = np.diff(edge_K1)
        self.n_rows_K = np.maximum(self.n_tokens_K - 1, 0) // context

    def plan(self, domain_B: np.ndarray, draw_B: np.ndarray) -> Plan:
        """Where to find the rows at place `draw_B` (int64, from 0, over all epochs) of their domains' order.

        Draw k of a domain belongs to its epoch k // rows; no row comes twice in an epoch.
        """
        n_rows_B = self.n_rows_K[domain_B]
        epoch_B, place_B = np.divmod(draw_B, n_rows_B)
        key_B = _mix(self._key_K[domain_B] + epoch_B.astype(np.uint64))
        row_B = _shuffled(place_B.astype(np.uint64), n_rows_B.astype(np.uint64), key_B).astype(np.int64)
        begin_B = self._first_K[domain_B] + row_B * self.context
        end_B = begin_B + self.context + 1

        first_B = np.searchsorted(self._edge_N1, begin_B, side="right") - 1
        n_pieces_B = np.searchsorted(self._edge_N1, end_B, side="left") - first_B
        piece_B1 = np.concatenate([[0], np.cumsum(n_pieces_B)])
        document_P = np.arange(piece_B1[-1]) + np.repeat(first_B - piece_B1[:-1], n_pieces_B)
        begin_P, end_P = self._edge_N1[document_P], self._edge_N1[document_P + 1]
        begin_P[piece_B1[:-1]] = begin_B
        end_P[piece_B1[1:] - 1] = end_B
        shift_P = self._shift_N[document_P]
        return Plan(domain_B=domain_B, begin_P=begin_P + shift_P, end_P=end_P + shift_P, piece_B1=piece_B1)

    def read(self, plan: Plan, rows: slice) -> np.ndarray:
        """Tokens of some of the planned rows: int32 [B, S]."""
        pieces = slice(plan.piece_B1[rows.start], plan.piece_B1[rows.stop])
        begin_P, end_P = plan.begin_P[pieces].tolist(), plan.end_P[pieces].tolist()
        # Joining bytes costs half of np.concatenate, and less than a fifth of an index for every token.
        tokens = self._store.tokens.data
        joined = b"".join([tokens[begin:end] for begin, end in zip(begin_P, end_P, strict=True)])
        row_tokens = np.frombuffer(joined, self._store.tokens.dtype).astype(np.int32)
        return row_tokens.reshape(-1, self.context + 1)


def _mix(x: np.ndarray) -> np.ndarray:
    """A pseudo-random one-to-one map of uint64: the step of SplitMix64 (Steele et al., 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _shuffled(index_B: np.ndarray, size_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
    """Where a pseudo-random permutation of range(size), chosen by the key, puts each index; all uint64.

    A Feistel network over pairs (left, right) from a rectangle just larger than the range, walked
    along its cycle until it is inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
    2002, section 5). It costs nothing to set up, unlike a stored permutation.
    """
    width_B = np.ceil(np.sqrt(size_B)).astype(np.uint64)
    height_B = (size_B + width_B - np.uint64(1)) // width_B
    keys_RB = _mix(key_B + np.arange(2 * _ROUNDS, dtype=np.uint64)[:, None])

    def permuted(place_B: np.ndarray) -> np.ndarray:
        left_B, right_B = np.divmod(place_B, height_B)
        for left_key_B, right_key_B in zip(keys_RB[::2], keys_RB[1::2], strict=True):
            left_B = (left_B + _scrambled(right_B, left_key_B)) % width_B
            right_B = (right_B + _scrambled(left_B, right_key_B)) % height_B
        return left_B * height_B + right_B

    place_B = permuted(index_B)
    while (outside_B := place_B >= size_B).any():
        place_B = np.where(outside_B, permuted(place_B), place_B)
    return place_B


def _scrambled(half_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
    """32 pseudo-random bits; cheap, as there are eight rounds of it."""
    return ((half_B ^ key_B) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
