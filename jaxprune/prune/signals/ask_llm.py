"""Ask-LLM: a language model's own judgement of a document.

Source: Sachdeva et al., How to Train Data-Efficient LLMs (arXiv 2402.09668). The model reads the document inside
a question about it, and the score is the probability of the answer yes. Here it is the log odds of the first
token of yes against that of no, log p(yes) - log p(no), which rank documents by p(yes | yes or no) and do not
round to 0 or 1. The paper keeps high scores, and judges with instruction-tuned models. The question is
`score.ask.prompt`, in which special tokens of the model (`<|user|>`) may be spelt; in a document they are text. A
text that is longer than there is room for is cut.

Legend: N documents, B rows of a batch, S = T + 1 tokens of a row, T positions, D model width, V vocabulary, P
tokens of a prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from flax import nnx
from jax.sharding import reshard

from jaxprune.artifact import Workdir
from jaxprune.config import Ask, Config, identity
from jaxprune.data.store import TokenStore
from jaxprune.data.tokenizer import Encoder
from jaxprune.model import sharding
from jaxprune.progress import Meter
from jaxprune.prune import models, texts
from jaxprune.prune.forward import of_windows
from jaxprune.prune.shards import Measure
from jaxprune.prune.translation import check_known
from jaxprune.prune.windows import Windows


def load(config: Config, workdir: Workdir) -> Measure:
    """Measures documents by the model `score.ask.model`.

    Raises:
      ArtifactMissing, ValueError: as `models.load`, `texts.decoder` and `measure_by`.
    """
    name = config.score.ask.model
    assert name is not None  # Config has checked it
    model = models.load(name, config, workdir)
    decoder = texts.decoder(workdir.prepare / "tokenizer", config.tokenizer.threads)
    return measure_by(
        config.score.ask,
        model.graphdef,
        model.params,
        model.mesh,
        context=model.context,
        batch_tokens=config.score.batch_tokens,
        vocab_size=model.vocab_size,
        encoder=decoder if model.encoder is None else model.encoder,
        decoder=decoder,
    )


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide the table; the model is among what it is made from."""
    return {name: value for name, value in identity(config.score.ask).items() if name != "model"}


def inputs(config: Config, workdir: Workdir) -> dict[str, str]:
    """What the table is made from beside the documents.

    Raises:
      ArtifactMissing, ValueError: as `models.fingerprint`.
    """
    name = config.score.ask.model
    assert name is not None
    return {"model": models.fingerprint(name, config, workdir)}


def measure_by(
    settings: Ask,
    graphdef: nnx.GraphDef,
    params: nnx.State,
    mesh: jax.sharding.Mesh,
    *,
    context: int,
    batch_tokens: int,
    vocab_size: int,
    encoder: Encoder,
    decoder: Encoder,
) -> Measure:
    """Measures documents by a model on a mesh.

    The table holds number and ask_llm (nats, float64).

    Args:
      settings: the question and the answers.
      graphdef, params, context, vocab_size: the model.
      batch_tokens: the size of a batch, padding included.
      encoder: the model's tokenizer.
      decoder: that of the documents' store.

    Raises:
      ValueError: the answers begin with the same token, the question leaves no room for text, or the tokenizer
        knows tokens that the model does not.
    """
    answers = _first_tokens(settings, encoder)
    before_P, after_P = encoder.encode(settings.prompt.split("{text}"), special=True)
    if before_P[:1].tolist() != [encoder.eod_id]:  # a chat template may spell it
        before_P = np.concatenate([[encoder.eod_id], before_P])
    check_known(np.concatenate([answers, before_P, after_P]), vocab_size)
    step = functools.partial(_make_step(graphdef), params, np.array(answers))
    room = min(settings.max_tokens, context - len(before_P) - len(after_P))
    if room < 1:
        raise ValueError(
            f"score.ask.prompt has {len(before_P) + len(after_P)} tokens, which leave no room for text in the model's "
            f"context of {context}: write a shorter one, or ask a model of a longer context"
        )

    def measure(store: TokenStore, numbers: np.ndarray, progress: Meter) -> pa.Table:
        shown = encoder.encode([texts.text(store.stored(number), decoder) for number in numbers.tolist()])
        prompts = [np.concatenate([before_P, tokens[:room], after_P]) for tokens in shown]
        length_N = np.array([len(prompt) for prompt in prompts], np.int64)
        rows = Windows(
            document_W=np.arange(len(numbers)),
            begin_W=np.cumsum(length_N) - length_N,
            start_W=np.zeros(len(numbers), np.int64),
            length_W=length_N,
        )
        tokens = np.concatenate([*prompts, [0]])  # a row takes a token more than it has positions: any
        check_known(tokens, vocab_size)
        odds_N = of_windows(
            step,
            tokens,
            rows,
            mesh,
            context=context,
            batch_tokens=batch_tokens,
            progress=progress,
            size_W=store.offsets_N1[numbers + 1] - store.offsets_N1[numbers] - 1,
        )
        return pa.table({"number": numbers, "ask_llm": odds_N})

    return measure


def _first_tokens(settings: Ask, encoder: Encoder) -> tuple[int, int]:
    yes, no = (int(tokens[0]) for tokens in encoder.encode([settings.yes, settings.no]))
    if yes == no:
        raise ValueError(
            f"score.ask.yes is {settings.yes!r} and score.ask.no {settings.no!r}, which begin with the same token "
            f"{encoder.decode(np.array([yes]))!r} of the model that is asked: give answers that differ at once"
        )
    return yes, no


@functools.lru_cache(maxsize=8)
def _make_step(graphdef: nnx.GraphDef) -> Callable[..., jax.Array]:
    """(params, the tokens of yes and no, tokens_BS, length_B) -> log odds behind the first length_B tokens, [B]."""

    @jax.jit
    def step(
        params: nnx.State, answers: jax.Array, tokens_BS: jax.Array, length_B: jax.Array, start_B: jax.Array
    ) -> jax.Array:
        model = nnx.merge(graphdef, params)
        hidden_BTD = model(reshard(tokens_BS[:, :-1], sharding.ACT_BT)).astype(jnp.float32)
        yes_D, no_D = reshard(
            model.unembedding().T.at[answers].get(out_sharding=sharding.POS_TD), sharding.VEC_LD
        )
        # The difference of two logits: what all the others add up to cancels.
        odds_BT = (hidden_BTD * (yes_D - no_D)).sum(axis=-1)
        is_last_BT = jnp.arange(odds_BT.shape[1]) == length_B[:, None] - 1
        return jnp.where(is_last_BT, odds_BT, 0.0).sum(axis=1)

    return step
