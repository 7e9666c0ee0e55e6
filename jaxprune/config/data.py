"""Where the text comes from, and how it becomes tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxprune.config.base import Settings, check, neutral


@dataclass(frozen=True, kw_only=True)
class Corpus(Settings):
    """Where documents come from, and which are dropped or held out."""

    sources: tuple[str, ...] = ("embedded",)
    """What to read: `embedded` (text of this Python installation), a file, a folder or a glob of
    .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt/.md/.py files, a cloud path (gs://, s3://), or
    `tfds:NAME[:SPLIT]`. `DOMAIN=PATH` gives all of a path one domain."""
    text_field: str = "text"
    """Field (column, feature) that holds the text."""
    id_field: str = "id"
    """Field that holds the document id; empty: the file's name and the record's number."""
    domain_field: str = "domain"
    """Field that holds the domain, where the source has no `DOMAIN=`; text folders use subfolders."""
    on_defect: Literal["drop", "error"] = "drop"
    """Invalid UTF-8, empty document, duplicate id, missing field, truncated file: `drop` counts and
    reports them, `error` stops at the first. A source of which nothing is left is always an error."""
    dedup: Literal["exact", "none"] = "exact"
    """Drop documents whose text is byte for byte that of an earlier one."""
    max_domain_bytes: int | None = None
    """Stop reading a domain after this many bytes of text; None: read everything."""
    heldout: float = 0.05
    """Share of each domain's documents, by hash of the id, that no model is trained on."""
    reference: float = 0.3
    """Share of the remaining documents that trains the reference model; the others are scored,
    pruned, and train the final model."""
    sequence_tokens: int | None = None
    """What is scored, and kept or removed as a whole: sequences of so many tokens, into which the documents
    of a domain are packed end to end; None: documents."""
    data_dir: str | None = neutral(None)
    """Folder of prepared TFDS datasets; None: the TFDS default."""

    def check_values(self) -> None:
        check(len(self.sources) > 0, "corpus.sources is empty: name a source, or `embedded`")
        check(all(self.sources), "corpus.sources has an empty name: name a source, or `embedded`")
        check(
            0 < self.heldout < 1,
            f"corpus.heldout is {self.heldout}: set a share between 0 and 1, such as 0.05",
        )
        check(
            0 < self.reference < 1,
            f"corpus.reference is {self.reference}: set a share between 0 and 1, such as 0.3",
        )
        check(
            self.sequence_tokens is None or self.sequence_tokens > 0,
            f"corpus.sequence_tokens is {self.sequence_tokens}: set a number above 0, such as the context, or None",
        )
        check(
            self.max_domain_bytes is None or self.max_domain_bytes > 0,
            f"corpus.max_domain_bytes is {self.max_domain_bytes}: set a number above 0, or None",
        )


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Settings):
    """A SentencePiece model trained on the corpus, or an existing tokenizer."""

    path: str | None = None
    """An existing SentencePiece `.model` or Hugging Face `tokenizer.json`; None: train one."""
    kind: Literal["bpe", "unigram"] = "bpe"
    """Kind of SentencePiece model to train."""
    vocab_size: int = 32_000
    """Pieces of the trained model, the end-of-document token included."""
    train_bytes: int = 20_000_000
    """Bytes of text to train on, taken evenly from the domains; bounds the memory of training."""
    eod_token: str | None = None
    """Token that separates documents in an existing tokenizer; None: its end-of-text token."""
    threads: int = neutral(2)
    """Threads that encode."""

    def check_values(self) -> None:
        check(
            self.vocab_size >= 300,
            f"tokenizer.vocab_size is {self.vocab_size}: byte fallback needs at least 300",
        )
        check(
            self.train_bytes > 0,
            f"tokenizer.train_bytes is {self.train_bytes}: set a number above 0",
        )
        check(self.threads > 0, f"tokenizer.threads is {self.threads}: set a number above 0")
