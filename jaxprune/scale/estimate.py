"""What a program takes and sends by arithmetic: for devices whose compiler is not here, and to choose what to compile.

Dimensions: B rows of a microbatch, T positions, D model width, V vocabulary.
"""

from __future__ import annotations

import math

import jax

from jaxprune.model.sharding import ROWS
from jaxprune.model.transformer import padded_vocab
from jaxprune.scale.hlo import Collective, shares
from jaxprune.scale.program import Program, bytes_per_chip, kept_by_a_layer, kept_for_backward
from jaxprune.scale.topology import Topology


def temporaries(program: Program) -> int:
    """Bytes of a device that a step takes beside its arguments.

    In training: what autodiff keeps of the forward pass, the gradients (twice where microbatches are summed), the
    unembedding gathered and its gradient, and a layer that is made again. Always: a chunk of logits and what is made of
    it. Steps of one H100 with layers scanned and logits in chunks took up to 20 % less, and once 7 % more.
    """
    model, mesh = program.run.model, program.mesh
    rows = program.tokens // model.context // math.prod(mesh.shape[axis] for axis in ROWS)
    rows //= program.run.microbatches if program.is_training else 1
    width = 2 if model.dtype == "bfloat16" else 4
    is_chunked = 0 < model.loss_chunk < model.context
    vocabulary = padded_vocab(program.vocab_size) // mesh.shape["tensor"]
    logits = 2 * 4 * rows * (model.loss_chunk if is_chunked else model.context) * vocabulary
    unembedding = model.d_model * vocabulary * width
    if not program.is_training:
        layer = (
            rows * model.context * (4 * model.d_model + 3 * model.mlp_width // mesh.shape["tensor"]) * width
        )
        return logits + layer + unembedding
    gradients = bytes_per_chip(program.params) * (2 if program.run.microbatches > 1 else 1)
    again = kept_by_a_layer(program) if model.remat == "full" else 0
    # Logits that are not made again are among what is kept.
    backward = (logits if is_chunked else 0) + unembedding + 2 * unembedding * 4 // width
    return kept_for_backward(program) + gradients + again + backward


def collectives(program: Program, topology: Topology) -> tuple[Collective, ...]:
    """What a device sends in a step, if parameters are gathered for each use and gradients scattered once a microbatch.

    Heads and MLP that are cut over `tensor` are summed twice a layer and pass, and what is cut with the vocabulary once. As `hlo.shares` counts.
    """
    chips = topology.n_chips // topology.slices
    mesh, model = program.mesh, program.run.model
    fsdp, tensor, replica = (mesh.shape[axis] for axis in ("fsdp", "tensor", "replica"))
    width = 2 if model.dtype == "bfloat16" else 4
    microbatches = program.run.microbatches if program.is_training else 1
    passes = 2 if program.is_training else 1
    matrices = [leaf for leaf in jax.tree.leaves(program.params) if leaf.ndim == 3]  # of the layers
    layers = sum(leaf.size for leaf in matrices) // tensor
    unembedding = padded_vocab(program.vocab_size) * model.d_model // tensor
    n_gathered = passes * sum(leaf.shape[0] for leaf in matrices) + 1
    gathered = (passes * layers + unembedding) * width  # the unembedding once for both passes
    n_scattered = sum(leaf.shape[0] for leaf in matrices) + 1
    scattered = (layers + unembedding) * 4
    rows = program.tokens // model.context // (microbatches * replica * fsdp)
    stream = rows * model.context * model.d_model * width  # the residual stream of a device's rows
    found: list[Collective] = []

    def add(kind: str, count: int, size: float, n: int, nodes: int) -> None:
        for over, share in zip(("links", "network"), shares(kind, n, nodes), strict=True):
            if share * size:
                found.append(
                    Collective(
                        kind=kind,
                        count=count * microbatches,
                        bytes=round(size * share * microbatches),
                        over=over,
                    )
                )

    spanned = -(-fsdp * tensor // chips)  # slices or nodes that share the parameters
    copies = topology.slices // spanned  # of those, with copies of them
    add("all-gather", n_gathered, gathered, fsdp, spanned)
    add("all-to-all", passes, passes * stream, fsdp, spanned)
    again = 1 if model.remat == "full" and program.is_training else 0
    sums = 2 * model.n_layers * (passes + again) + (passes - 1)  # the last of the unembedding's backward pass
    of_loss = (
        3 * 4 * rows * model.context
    )  # the largest logit, the sum of exponentials, the logit of the target
    looked_up = 4 * rows * model.context * model.d_model  # in float32, as the table is
    add("all-reduce", sums + 4, sums * stream + of_loss + looked_up, tensor, 1)
    if program.is_training:
        add("reduce-scatter", n_scattered, scattered, fsdp, spanned)
        # Of the part of each gradient that is left on a device.
        add("all-reduce", n_scattered, scattered / fsdp, replica, copies)
    return tuple(found)
