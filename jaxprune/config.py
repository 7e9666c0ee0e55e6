"""The settings of a run: one tree of frozen dataclasses, made by the functions in `configs/`.

Every field has its unit and its meaning in the docstring below it, which is what `--help` prints.
Fields marked `neutral()` change how a result is computed but not the result, so that changing
one does not invalidate artifacts already made.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

NEUTRAL = {"neutral": True}

Arm = Literal["none", "random", "pruned", "reweighted", "within_domain"]
Signal = Literal["perplexity", "bits_per_byte", "nll", "information", "ratio", "excess", "el2n", "memorization", "vog",
                 "prior_mean", "prior_std", "compression", "zip", "density", "dsir", "ask_llm"]  # fmt: skip


def neutral(default: Any) -> Any:
    """A field that does not change results: speed, logging, where things run."""
    return field(default=default, metadata=NEUTRAL)


def identity(settings: Any) -> Any:
    """`settings` as plain JSON data without its neutral fields: what decides a stage's result."""
    if dataclasses.is_dataclass(settings):
        return {
            f.name: identity(getattr(settings, f.name))
            for f in dataclasses.fields(settings)
            if not f.metadata.get("neutral")
        }
    if isinstance(settings, dict):
        return {key: identity(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [identity(value) for value in settings]
    return settings


def check(holds: bool, message: str) -> None:
    """Raises `ValueError(message)` unless the setting holds; the message says what to set instead."""
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings, which checks itself when it is made: first the types, then the values."""

    def __post_init__(self) -> None:
        # Here, because it takes longer to import than the command line to answer.
        from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

        for name, expected in get_type_hints(type(self)).items():
            value = getattr(self, name)
            try:
                check_type(value, expected, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            except TypeCheckError:
                readable = re.sub(
                    r"\b(typing|jaxprune\.config)\.|<class '(?:\w+\.)*(\w+)'>", r"\2", str(expected)
                )
                raise ValueError(
                    f"{type(self).__name__}.{name} is {value!r}: give a value of type {readable}"
                ) from None
        self.check_values()

    def check_values(self) -> None:
        """Raises ValueError with one line that says what to set instead."""


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


@dataclass(frozen=True, kw_only=True)
class Model(Settings):
    """A decoder-only transformer."""

    d_model: int = 768
    """Width of the residual stream."""
    n_layers: int = 12
    """Number of blocks."""
    n_heads: int = 12
    """Query heads."""
    n_kv_heads: int | None = None
    """Key and value heads (grouped-query attention); None: as many as query heads."""
    d_ff: int | None = None
    """Width of the MLP; None: 4 x d_model for gelu and gelu_tanh, 8/3 x d_model rounded up to 128 for swiglu."""
    context: int = 2048
    """Tokens a row holds (T)."""
    position: Literal["learned", "rope"] = "learned"
    """Position encoding."""
    norm: Literal["layer", "rms"] = "layer"
    """Normalisation before each sublayer and at the end."""
    norm_eps: float = 1e-5
    """Added to the variance that the normalisation divides by."""
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    """The MLP's non-linearity; `gelu_tanh` is the approximation that GPT-2 was trained with."""
    parallel_residual: bool = False
    """Attention and MLP both read the block's input (GPT-NeoX); else the MLP reads what attention has added to."""
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
    attention_bias: bool | None = None
    """Biases in the linear layers of attention; None: as `bias`."""
    tie_embeddings: bool = True
    """Whether the output projection is the token embedding."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_share: float = 1.0
    """Share of a head's channels, the first ones, that rotary positions turn (GPT-NeoX: 0.25)."""
    rope_factor: float = 1.0
    """Factor by which rotary wavelengths are lengthened for a longer context: all of them, or from
    rope_short to rope_long in proportion to how near their frequency is (Llama 3)."""
    rope_short: float = 0.0
    """Wavelengths up to this, in tokens, stay as they are."""
    rope_long: float = 0.0
    """Wavelengths from this on, in tokens, are lengthened by the whole of rope_factor."""
    init_std: float = 0.02
    """Standard deviation of initial weights; output projections of sublayers use init_std / sqrt(2 n_layers)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the computation; parameters, optimizer state and loss stay float32."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Attention kernel; `auto`: splash on TPU, cuDNN on NVIDIA GPUs, XLA elsewhere."""
    remat: Literal["none", "dots", "full"] = neutral("none")
    """What the backward pass recomputes: nothing, all but matrix products, or whole blocks."""
    unroll: int = neutral(1)
    """Blocks unrolled in the scan over layers; n_layers: no scan."""
    loss_chunk: int = neutral(512)
    """Positions whose logits exist at once in the loss; 0: all."""

    def check_values(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "context", "unroll"):
            value = getattr(self, name)
            check(value > 0, f"model.{name} is {value}: set a number above 0")
        for name in ("rope_theta", "rope_factor", "norm_eps", "init_std"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"model.{name} is {value}: set a finite number above 0")
        check(
            self.d_ff is None or self.d_ff > 0,
            f"model.d_ff is {self.d_ff}: set a number above 0, or None",
        )
        check(
            self.d_model % self.n_heads == 0,
            f"model.d_model is {self.d_model}: make it a multiple of model.n_heads, {self.n_heads}",
        )
        check(
            self.n_kv_heads is None or (self.n_kv_heads > 0 and self.n_heads % self.n_kv_heads == 0),
            f"model.n_kv_heads is {self.n_kv_heads}: set a divisor of model.n_heads, {self.n_heads}",
        )
        check(
            self.position == "learned" or (self.d_model // self.n_heads) % 2 == 0,
            f"model.d_model / model.n_heads is {self.d_model // self.n_heads}: "
            "rotary positions need an even head width",
        )
        check(
            self.position == "learned"
            or (0 < self.rope_share <= 1 and self.rope_width > 0 and self.rope_width % 2 == 0),
            f"model.rope_share is {self.rope_share}, which turns {self.rope_width} of a head's "
            f"{self.d_model // self.n_heads} channels: set a share up to 1 that turns an even number of them",
        )
        check(
            0 < self.rope_short < self.rope_long < math.inf or self.rope_short == self.rope_long == 0,
            f"model.rope_short is {self.rope_short} and model.rope_long {self.rope_long}: set a longer "
            "wavelength for rope_long, or 0 for both",
        )
        check(self.loss_chunk >= 0, f"model.loss_chunk is {self.loss_chunk}: set 0 or more")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def has_attention_bias(self) -> bool:
        """Whether the linear layers of attention have biases."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def rope_width(self) -> int:
        """Channels of a head that rotary positions turn."""
        return int(self.d_model // self.n_heads * self.rope_share)

    @property
    def mlp_width(self) -> int:
        """Width of the MLP."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // (3 * 128)) * 128 if self.mlp == "swiglu" else 4 * self.d_model


@dataclass(frozen=True, kw_only=True)
class Optimizer(Settings):
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "lion", "muon"] = "adamw"
    """`lion` is the decoupled Lion of the pruning paper (Ankner et al., section 3.1)."""
    peak_lr: float = 6e-4
    """Highest learning rate."""
    weight_decay: float | None = None
    """adamw, muon: decay per step is lr x weight_decay; None: 0.1. lion: decay per step is weight_decay
    x lr / peak_lr (decoupled, as in Composer); None: peak_lr, as in the paper."""
    b1: float | None = None
    """First momentum (muon: of the AdamW part); None: 0.9."""
    b2: float | None = None
    """Second momentum (muon: of the AdamW part); None: 0.95 for adamw and muon, 0.99 for lion."""
    eps: float = 1e-8
    """AdamW's denominator floor."""
    clip: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; None: never."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after warm-up; `wsd`: stable, then a linear decay over the last `decay` share."""
    warmup: float = 0.02
    """Share of the steps over which the learning rate rises from 0."""
    decay: float = 0.2
    """wsd: share of the steps over which the learning rate falls."""
    final_lr: float = 0.1
    """Learning rate at the end, as a share of peak_lr."""

    def check_values(self) -> None:
        for name in ("peak_lr", "eps"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"optimizer.{name} is {value}: set a finite number above 0")
        check(
            0 <= self.shrinkage < math.inf,
            f"optimizer.weight_decay is {self.weight_decay}: set a finite number, 0 or more",
        )
        for name, value in zip(("b1", "b2"), self.momenta, strict=True):
            check(0 <= value < 1, f"optimizer.{name} is {value}: set a number in [0, 1)")
        for name in ("warmup", "decay", "final_lr"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"optimizer.{name} is {value}: set a share between 0 and 1")
        check(
            self.clip is None or self.clip > 0,
            f"optimizer.clip is {self.clip}: set a number above 0, or None",
        )
        check(
            self.schedule != "wsd" or self.warmup + self.decay <= 1,
            f"optimizer.warmup is {self.warmup} and optimizer.decay {self.decay}: "
            "under wsd make them add up to 1 at most",
        )

    @property
    def shrinkage(self) -> float:
        """Weight decay, or the optimizer's own."""
        if self.weight_decay is not None:
            return self.weight_decay
        return self.peak_lr if self.name == "lion" else 0.1

    @property
    def momenta(self) -> tuple[float, float]:
        """b1 and b2, or the optimizer's own."""
        usual_b2 = 0.99 if self.name == "lion" else 0.95
        return 0.9 if self.b1 is None else self.b1, usual_b2 if self.b2 is None else self.b2


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """One training run: the reference, a proxy or the final model."""

    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    tokens: int = 2_500_000_000
    """Tokens to train on, rounded up to whole steps."""
    batch_rows: int = 256
    """Rows of a global batch (B); a step trains on batch_rows x model.context tokens."""
    microbatches: int = neutral(1)
    """Parts into which a batch is cut; gradients are summed over them."""
    validate_every: int = neutral(250)
    """Steps between validations on the fixed held-out rows; 0: only at the end."""
    validation_rows: int = neutral(8)
    """Held-out rows for each domain (the same each time)."""
    checkpoint_every: int = neutral(250)
    """Steps between checkpoints."""
    keep_checkpoints: int = neutral(2)
    """Newest checkpoints that are kept while the run lasts; in the end only the last is."""
    log_every: int = neutral(10)
    """Steps between lines of metrics."""

    def check_values(self) -> None:
        for name in ("tokens", "batch_rows", "microbatches", "validation_rows", "checkpoint_every", "keep_checkpoints", "log_every"):  # fmt: skip
            value = getattr(self, name)
            check(value > 0, f"{name} is {value}: set a number above 0")
        check(self.validate_every >= 0, f"validate_every is {self.validate_every}: set 0 or more")
        check(
            self.batch_rows % self.microbatches == 0,
            f"microbatches is {self.microbatches}: set a divisor of batch_rows, {self.batch_rows}",
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return -(-self.tokens // (self.batch_rows * self.model.context))


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


@dataclass(frozen=True, kw_only=True)
class Select(Settings):
    """Which scored documents are kept."""

    signals: tuple[Signal, ...] = ("perplexity",)
    """What documents are ranked by; several are combined."""
    information_per: Literal["token", "byte", "document"] = "token"
    """What the signal information is divided by."""
    combine: Literal["intersection", "product"] = "intersection"
    """Of several signals: documents inside the same band of each, whose width is such that `rate` survives;
    or a band of the product of their ranks."""
    criterion: Literal["low", "medium", "high", "random", "proportional", "threshold"] = "medium"
    """What is kept: a band of the ranks (Ankner et al., section 2); a random draw, of equal chances or
    (proportional) in proportion to exp(signal / temperature); or (threshold) signals from low to high."""
    rate: float = 0.5
    """Share that is kept; threshold does not use it."""
    rates: dict[str, float] = field(default_factory=dict)
    """Share that is kept of a domain, with scope domain; domains that are not named keep `rate`."""
    scope: Literal["global", "domain"] = "global"
    """Rank over the whole corpus, or inside each domain (which leaves the mixture as it is)."""
    weight: Literal["documents", "tokens"] = "documents"
    """What `rate` is a share of."""
    temperature: float = 1.0
    """proportional: in the unit of the signal; small ones keep the highest, negative ones prefer low signals."""
    low: float | None = None
    """threshold: the lowest signal that is kept, in its unit (perplexity: nats per token); None: no limit."""
    high: float | None = None
    """threshold: the highest signal that is kept; None: no limit."""
    min_tokens: int = 8
    """Documents with fewer tokens have noisy scores: they are not ranked, and are removed."""

    def check_values(self) -> None:
        check(
            len(self.signals) > 0 and len(set(self.signals)) == len(self.signals),
            f"select.signals is {self.signals}: name one signal or more, each once",
        )
        check(
            self.criterion not in ("proportional", "threshold") or len(self.signals) == 1,
            f"select.criterion is {self.criterion}, which takes one signal, but select.signals is {self.signals}: "
            "name one, or set select.criterion to low, medium or high",
        )
        check(
            0 < self.rate <= 1,
            f"select.rate is {self.rate}: set a share above 0 and up to 1, such as 0.5",
        )
        check(
            all(0 <= rate <= 1 for rate in self.rates.values()),
            f"select.rates is {self.rates}: set shares from 0 to 1",
        )
        check(
            not self.rates or self.scope == "domain",
            f"select.rates is given but select.scope is {self.scope}: set select.scope to domain, or give no rates",
        )
        check(
            self.temperature != 0 and math.isfinite(self.temperature),
            f"select.temperature is {self.temperature}: set a finite number that is not 0",
        )
        check(
            self.criterion != "threshold" or not (self.low is None and self.high is None),
            "select.criterion is threshold but select.low and select.high are None: set one of them or both",
        )
        for name in ("low", "high"):
            value = getattr(self, name)
            check(
                value is None or math.isfinite(value),
                f"select.{name} is {value}: set a finite number, or None for no limit",
            )
        check(
            self.low is None or self.high is None or self.low <= self.high,
            f"select.low is {self.low} and select.high {self.high}: set a higher select.high",
        )
        check(self.min_tokens >= 1, f"select.min_tokens is {self.min_tokens}: set 1 or more")


@dataclass(frozen=True, kw_only=True)
class Mix(Settings):
    """Proportions of the domains in the final run's training tokens."""

    method: Literal["natural", "uniform", "temperature", "fixed"] = "natural"
    """natural: the kept tokens of each domain; temperature: natural ** (1 / temperature)."""
    temperature: float = 2.0
    """temperature: 1 is natural, infinity is uniform; no other method uses it."""
    weights: dict[str, float] = field(default_factory=dict)
    """fixed: a weight for each domain; they are divided by their sum."""
    max_epochs: float | None = None
    """Refuse a run in which a domain repeats more often than this; None: only warn above 4."""

    def check_values(self) -> None:
        check(
            self.temperature > 0,
            f"mix.temperature is {self.temperature}: set a number above 0",
        )
        check(
            self.max_epochs is None or self.max_epochs > 0,
            f"mix.max_epochs is {self.max_epochs}: set a number above 0, or None",
        )
        check(
            all(0 <= weight < math.inf for weight in self.weights.values()),
            f"mix.weights is {self.weights}: weights must not be negative or infinite",
        )
        check(
            self.method != "fixed" or sum(self.weights.values()) > 0,
            "mix.method is fixed but mix.weights is empty: give a weight for each domain (--mix.weights DOMAIN WEIGHT ...)",
        )
        check(
            self.method == "fixed" or not self.weights,
            f"mix.weights is given but mix.method is {self.method}: set mix.method to fixed, or give no weights",
        )


@dataclass(frozen=True, kw_only=True)
class Audit(Settings):
    """What the audit shows of each selection."""

    selection: str | None = None
    """Selection that the first page shows; None: `pruned`, or the first that removes anything."""
    domains: int = 30
    """Domains with charts and documents, those that lose most tokens; tables and audit.json have all."""
    documents: int = 2
    """Documents of a domain on each side of each threshold, at each end, and in each random sample."""
    characters: int = 600
    """Characters of a document's text that are shown."""

    def check_values(self) -> None:
        for name in ("domains", "documents", "characters"):
            value = getattr(self, name)
            check(value > 0, f"audit.{name} is {value}: set a number above 0")


@dataclass(frozen=True, kw_only=True)
class Mesh(Settings):
    """How devices are arranged; -1 takes the devices that the other axes leave."""

    replica: int = 1
    """Copies of the parameters: data parallelism across slices or nodes."""
    fsdp: int = -1
    """Parts into which parameters and batches are cut."""
    tensor: int = 1
    """Parts into which heads, MLP and vocabulary are cut."""

    def check_values(self) -> None:
        sizes = (self.replica, self.fsdp, self.tensor)
        check(
            all(size > 0 or size == -1 for size in sizes) and sizes.count(-1) <= 1,
            f"mesh is {sizes}: set sizes above 0, and -1 for at most one axis",
        )


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Everything `jaxprune run` needs."""

    name: str
    """Name of the run, shown in the report."""
    seed: int = 0
    """Seed of the splits, the reference model and the random arms."""
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    reference: Run = field(default_factory=Run)
    second: Run = field(default_factory=Run)
    """Another size, trained on the documents of the reference where score.model is `second`, or where a signal reads
    score.second (or score.ask.model), which is."""
    score: Score = field(default_factory=Score)
    select: Select = field(default_factory=Select)
    mix: Mix = field(default_factory=Mix)
    final: Run = field(default_factory=Run)
    audit: Audit = field(default_factory=Audit, metadata=NEUTRAL)
    arms: tuple[Arm, ...] = ("none", "random", "pruned")
    """Final runs to compare, all with the same number of training tokens. none: no pruning; random:
    random at the same rate; pruned: `select`; reweighted: random, re-weighted to the domain shares
    of `pruned`; within_domain: `select` inside each domain."""
    seeds: tuple[int, ...] = (0, 1)
    """Each arm is trained once with each seed."""
    mesh: Mesh = field(default_factory=Mesh, metadata=NEUTRAL)
    metrics: tuple[Literal["tensorboard"], ...] = neutral(("tensorboard",))
    """Where metrics go besides metrics.jsonl."""

    def check_values(self) -> None:
        check(
            len(self.arms) > 0 and len(set(self.arms)) == len(self.arms),
            f"arms is {self.arms}: name each arm once",
        )
        check(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds),
            f"seeds is {self.seeds}: name each seed once",
        )
        for name, seeds in (("seed", (self.seed,)), ("seeds", self.seeds)):
            check(
                all(0 <= seed < 2**32 for seed in seeds),  # jax takes the lower 32 bits
                f"{name} is {getattr(self, name)}: set whole numbers from 0 to {2**32 - 1}",
            )
        check(
            self.score.target is not None or "dsir" not in self.signals,
            "the signal dsir needs score.target, which is None: name text that documents should be like",
        )
        check(
            self.score.ask.model is not None or "ask_llm" not in self.signals,
            "the signal ask_llm needs score.ask.model, which is None: name the folder of an instruction model",
        )
        check(
            "vog" not in self.signals or self.reference.steps >= self.score.vog_checkpoints,
            f"score.vog_checkpoints is {self.score.vog_checkpoints} and the reference takes {self.reference.steps} steps: "
            "set that or less, or raise reference.tokens",
        )
        compared = sorted({"ratio", "excess"} & {*self.signals})
        check(
            not compared or self.score.second not in (None, self.score.model),
            f"the signal {' and '.join(compared)} needs a model beside score.model ({self.score.model}), and score.second "
            f"is {self.score.second}: set it to second (trained here) or to a folder",
        )
        for name, value in (("scope", "domain"), ("criterion", "random")):
            check(
                getattr(self.select, name) != value or not {"pruned", "within_domain"} <= set(self.arms),
                f"select.{name} is {value}, which makes the arms pruned and within_domain the same: leave out one",
            )

    @property
    def signals(self) -> tuple[Signal, ...]:
        """The signals that select or that are asked for beside."""
        return tuple(dict.fromkeys((*self.select.signals, *self.score.signals)))

    @property
    def compared(self) -> tuple[str, ...]:
        """The models whose NLL is taken in the same windows: that of the scores, and a second if a signal reads it."""
        first, second = self.score.model, self.score.second
        is_read = not {"ratio", "excess"}.isdisjoint(self.signals)
        return (first, second) if is_read and second is not None else (first,)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that scores and signals read, each once."""
        of_signals = {"vog": "reference", "ask_llm": self.score.ask.model}
        read = [name for signal, name in of_signals.items() if signal in self.signals and name is not None]
        return tuple(dict.fromkeys((*self.compared, *read)))

    @property
    def scorers(self) -> tuple[str, ...]:
        """Those of the models that are trained here."""
        return tuple(name for name in ("reference", "second") if name in self.models)

    @property
    def vog_steps(self) -> tuple[int, ...]:
        """The steps of the reference run whose parameters the signal vog reads; none if it is not asked for."""
        if "vog" not in self.signals:
            return ()
        parts, steps = self.score.vog_checkpoints, self.reference.steps
        return tuple(steps * part // parts for part in range(1, parts + 1))

    @property
    def final_runs(self) -> dict[str, tuple[Arm, int]]:
        """Name (`<arm>-<seed>`) -> arm and seed of each final run."""
        return {f"{arm}-{seed}": (arm, seed) for arm in self.arms for seed in self.seeds}
