"""The shape of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxprune.config.base import Settings, check, neutral


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
