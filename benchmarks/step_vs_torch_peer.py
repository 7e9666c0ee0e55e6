"""The PyTorch side of step_vs_torch.py, which starts it: the same MPT model, eager, in float32.

Reads weights and tokens from a folder and says on standard output what runs here; then reads a case
(`["score", 512]`) a line on standard input, and answers with its loss, seconds and CPU-seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Mpt(nn.Module):
    def __init__(self, rows: int, width: int, heads: int, layers: int, context: int):
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean next-token NLL of tokens [B, T + 1]."""
        x = self.table(tokens[:, :-1]) + self.position.weight[: tokens.shape[1] - 1]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.table.weight)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def load(folder: Path, heads: int) -> Mpt:
    """The model with the weights in `folder`: one .npy file for each parameter of ours."""
    ours = {path.stem: torch.from_numpy(np.load(path)) for path in folder.glob("*_*.npy")}
    rows, width = ours["table_VD"].shape
    layers = len(ours["blocks.attention_norm.scale_D"])
    model = Mpt(rows, width, heads, layers, len(ours["position_TD"]))

    def fill(module: nn.Module, name: str, *layer: int) -> None:
        parameters = dict(module.named_parameters())
        for ours_name, theirs in (
            ("scale_D", "weight"),
            ("bias_D", "bias"),
            ("weight_LIO", "weight"),
            ("bias_LO", "bias"),
        ):
            if f"{name}.{ours_name}" in ours:
                value = ours[f"{name}.{ours_name}"][layer]
                parameters[theirs].copy_(value.T if ours_name == "weight_LIO" else value)

    with torch.no_grad():
        model.table.weight.copy_(ours["table_VD"])
        model.position.weight.copy_(ours["position_TD"])
        fill(model.norm, "norm")
        for layer, block in enumerate(model.blocks):
            fill(block.attention_norm, "blocks.attention_norm", layer)
            fill(block.mlp_norm, "blocks.mlp_norm", layer)
            fill(block.output, "blocks.attention.output", layer)
            fill(block.up, "blocks.mlp.up", layer)
            fill(block.down, "blocks.mlp.down", layer)
            qkv = ("query", "key", "value")
            weights = [ours[f"blocks.attention.{name}.weight_LIO"][layer].T for name in qkv]
            biases = [ours[f"blocks.attention.{name}.bias_LO"][layer] for name in qkv]
            block.qkv.weight.copy_(torch.cat(weights))
            block.qkv.bias.copy_(torch.cat(biases))
    return model


def main(folder: Path, settings: dict) -> None:
    torch.set_num_threads(settings["threads"])
    model = load(folder, settings["heads"])
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings["rate"],
        betas=(settings["b1"], settings["b2"]),
        eps=settings["eps"],
        weight_decay=settings["decay"],
        fused=True,
    )

    def score(tokens: torch.Tensor) -> float:
        with torch.inference_mode():
            return model(tokens).item()

    def train(tokens: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(tokens)
        loss.backward()
        optimizer.step()
        return loss.item()

    print(f"torch {torch.__version__}, eager, {torch.get_num_threads()} threads", flush=True)
    for line in sys.stdin:
        work, length = json.loads(line)
        tokens = torch.from_numpy(np.load(folder / f"tokens-{length}.npy")).long()
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = (score if work == "score" else train)(tokens)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        print(json.dumps({"loss": loss, "seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
