"""What is measured of each document, and by whom."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxprune.config.base import Settings, check, neutral

Signal = Literal["perplexity", "bits_per_byte", "nll", "information", "ratio", "excess", "el2n", "memorization", "vog",
                 "prior_mean", "prior_std", "compression", "zip", "density", "dsir", "ask_llm"]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Zip(Settings):
    """The signal zip: documents of at least select.min_tokens in greedy order of their joint compression ratio, for
    corpora of up to about 100,000."""

    candidates: int = 10_000
    """Documents of the lowest known ratio that each round compresses jointly with those chosen so far."""
    shortlist: int = 200
    """Candidates of the lowest joint ratio among which a round chooses."""
    step: int = 100
    """Documents that a round chooses, one by one."""

    def check_values(self) -> None:
        check(
            0 < self.step <= self.shortlist <= self.candidates,
            f"score.zip.step is {self.step}, shortlist {self.shortlist} and candidates {self.candidates}: "
            "set numbers above 0 that do not fall in this order",
        )


@dataclass(frozen=True, kw_only=True)
class Density(Settings):
    """The signal density: how many documents are near a document in a space of embeddings."""

    embeddings: str | None = None
    """Embeddings of the documents that may be pruned: a .npy file of [N, D] in the order of the store, or a
    Parquet file with the columns id and vector; None: hashed unigrams and bigrams of their tokens."""
    dimensions: int = 256
    """Width of the hashed embeddings."""
    rows: int = 1000
    """Hash functions over which the estimate is averaged."""
    buckets: int = 20_000
    """Counters of each hash function; memory is 4 bytes x rows x buckets."""
    projections: int = 4
    """Random projections in which documents must agree to share a counter: the more, the steeper the kernel.
    Unrelated documents, about 1.2 apart, count as 0.01 each; set more for corpora of many millions."""
    bandwidth: float = 1.0
    """Width of a projection's cells; embeddings have length 1."""

    def check_values(self) -> None:
        for name in ("dimensions", "rows", "buckets", "projections"):
            value = getattr(self, name)
            check(value > 0, f"score.density.{name} is {value}: set a number above 0")
        check(
            0 < self.bandwidth < math.inf,
            f"score.density.bandwidth is {self.bandwidth}: set a finite number above 0",
        )


@dataclass(frozen=True, kw_only=True)
class Ask(Settings):
    """The signal ask_llm: what an instruction model says when it is asked about a document."""

    model: str | None = None
    """Model that is asked, as `score.model`; the signal needs it."""
    prompt: str = (
        "This is a document, or its beginning:\n\n{text}\n\n---\n"
        "Is it worth learning from? It should be clearly written, say something true or useful about the "
        "world, and harm nobody. Reply with yes or no.\nReply:"
    )
    """The question, special tokens of a chat template included; the document's text takes the place of {text}."""
    yes: str = " yes"
    """Answer in favour; its first token counts."""
    no: str = " no"
    """Answer against; its first token counts."""
    max_tokens: int = 1024
    """Tokens of the text that are shown, as far as the model's context has room."""

    def check_values(self) -> None:
        check(
            self.prompt.count("{text}") == 1,
            f"score.ask.prompt is {self.prompt!r}: write {{text}} once, where the document goes",
        )
        check(
            len(self.yes) > 0 and len(self.no) > 0,
            f"score.ask.yes is {self.yes!r} and score.ask.no {self.no!r}: give an answer for each",
        )
        check(
            self.max_tokens > 0,
            f"score.ask.max_tokens is {self.max_tokens}: set a number above 0",
        )


@dataclass(frozen=True, kw_only=True)
class Score(Settings):
    """How documents are scored, by the reference or another model."""

    model: str = "reference"
    """Model whose NLL is taken: `reference` (trained here), or a folder that holds a finished training run
    of jaxprune or a model in Hugging Face format (Llama, GPT-2 or GPT-NeoX) with its tokenizer.json."""
    second: str | None = None
    """Second model, for the signals ratio and excess: `second` (trained here), or a folder as above."""
    context: int | None = None
    """Tokens that a window of a long document predicts; None: the context of the model that scores, and of the
    two models of ratio and excess the shorter one, for both."""
    overlap: int = 0
    """Tokens of a window that were targets of the window before and are now context only."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type in which a model in Hugging Face format computes; auto: bfloat16 where its config.json says that its
    weights are stored so, else float32."""
    signals: tuple[Signal, ...] = ()
    """Signals to compute beside those that select.signals names."""
    target: str | None = None
    """dsir: text that documents should be like: a source as in corpus.sources."""
    vog_checkpoints: int = 5
    """vog: times of the reference's training that are compared, evenly spaced up to its end."""
    ask: Ask = field(default_factory=Ask)
    density: Density = field(default_factory=Density)
    zip: Zip = field(default_factory=Zip)
    batch_tokens: int = neutral(65_536)
    """Tokens, padding included, of one batch."""
    shard_documents: int = neutral(16_384)
    """Documents of one shard: what a killed run may have to score again."""

    def check_values(self) -> None:
        for name in ("batch_tokens", "shard_documents"):
            value = getattr(self, name)
            check(value > 0, f"score.{name} is {value}: set a number above 0")
        check(
            self.context is None or self.context > 0,
            f"score.context is {self.context}: set a number above 0, or None",
        )
        check(self.overlap >= 0, f"score.overlap is {self.overlap}: set 0 or more")
        check(
            self.context is None or self.overlap < self.context,
            f"score.overlap is {self.overlap}: set less than score.context, {self.context}",
        )
        check(
            self.vog_checkpoints >= 2,
            f"score.vog_checkpoints is {self.vog_checkpoints}: set 2 or more, which can differ",
        )
