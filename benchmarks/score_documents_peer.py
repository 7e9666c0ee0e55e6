"""The side of Hugging Face transformers of score_documents.py, which starts it.

Reads weights and documents from a folder, says on standard output what runs here, and answers each line
on standard input with the seconds it took to score every document and their NLLs.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]


def load(folder: Path, heads: int, context: int) -> transformers.GPT2LMHeadModel:
    """GPT-2 in the shape of MPT, with the weights that the other side saved."""
    saved = {path.stem: torch.from_numpy(np.load(path)) for path in folder.glob("*.npy")}
    n_layers, width, hidden = saved["blocks.mlp.up.weight_LIO"].shape
    table = saved["table_VD"]
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=len(table),
            n_positions=context,
            n_embd=width,
            n_layer=n_layers,
            n_head=heads,
            n_inner=hidden,
            activation_function="gelu",
            layer_norm_epsilon=1e-5,
            attn_implementation="sdpa",
        )
    )
    state = {"transformer.wte.weight": table, "transformer.wpe.weight": saved["position_TD"]}
    state |= {
        f"transformer.ln_f.{ours}": saved[f"norm.{theirs}_D"]
        for ours, theirs in (("weight", "scale"), ("bias", "bias"))
    }
    qkv = ("query", "key", "value")
    for layer in range(n_layers):
        place = f"transformer.h.{layer}"
        for theirs, ours in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
            state[f"{place}.{theirs}.weight"] = saved[f"blocks.{ours}.scale_D"][layer]
            state[f"{place}.{theirs}.bias"] = saved[f"blocks.{ours}.bias_D"][layer]
        for kind, suffix in (("weight", "weight_LIO"), ("bias", "bias_LO")):
            state[f"{place}.attn.c_attn.{kind}"] = torch.cat(
                [saved[f"blocks.attention.{name}.{suffix}"][layer] for name in qkv], dim=-1
            )
            for theirs, ours in (
                ("attn.c_proj", "attention.output"),
                ("mlp.c_fc", "mlp.up"),
                ("mlp.c_proj", "mlp.down"),
            ):
                state[f"{place}.{theirs}.{kind}"] = saved[f"blocks.{ours}.{suffix}"][layer]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model.eval()


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(settings["threads"])
    model = load(folder, settings["heads"], settings["context"])
    tokens = np.fromfile(folder / "store" / "tokens", np.uint16).astype(np.int64)
    offsets = np.load(folder / "store" / "offsets.npy")
    context = settings["context"]
    windows = [
        (document, first, min(first + context + 1, end))
        for document, (start, end) in enumerate(itertools.pairwise(offsets.tolist()))
        for first in range(start, end - 1, context)
    ]
    windows.sort(key=lambda window: window[2] - window[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, settings["dtype"])
    model = model.to(device, dtype)
    # A CPU gains nothing from batches and would compute the padding; a GPU is idle without them.
    batches = filled(windows, settings["batch_tokens"] if device == "cuda" else 0)
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, eager, {device} {settings['dtype']}, "
        f"{settings['threads']} threads, {len(batches)} batches",
        flush=True,
    )
    for _ in sys.stdin:
        begin = time.perf_counter()
        nll_N = np.zeros(len(offsets) - 1)
        with torch.inference_mode():
            pending = [nlls(model, tokens, batch, device) for batch in batches]
            for batch, nll_B in zip(batches, pending, strict=True):
                np.add.at(nll_N, [document for document, _, _ in batch], nll_B.double().cpu().numpy())
        print(json.dumps({"seconds": time.perf_counter() - begin, "nll_N": nll_N.tolist()}), flush=True)


def filled(windows: list[tuple[int, int, int]], batch_tokens: int) -> list[list[tuple[int, int, int]]]:
    """Windows in ascending order of length, in batches of at most so many tokens with padding; 0: one by one."""
    batches: list[list[tuple[int, int, int]]] = []
    for window in windows:
        longest = window[2] - window[1]
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
        batches[-1].append(window)
    return batches


def nlls(
    model: transformers.GPT2LMHeadModel, tokens: np.ndarray, batch: list[tuple[int, int, int]], device: str
) -> torch.Tensor:
    """Summed NLL of each window of a batch, which is padded on the right."""
    longest = max(end - first for _, first, end in batch)
    rows = np.zeros((len(batch), longest), np.int64)
    targets = np.full((len(batch), longest - 1), -100)
    for row, (_, first, end) in enumerate(batch):
        rows[row, : end - first] = tokens[first:end]
        targets[row, : end - first - 1] = tokens[first + 1 : end]
    logits = model(torch.from_numpy(rows[:, :-1]).to(device)).logits.float()
    aims = torch.from_numpy(targets).to(device)
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), aims, reduction="none").sum(dim=1)


if __name__ == "__main__":
    main()
