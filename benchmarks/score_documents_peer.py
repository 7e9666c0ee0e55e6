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
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, eager, {settings['threads']} threads",
        flush=True,
    )
    for _ in sys.stdin:
        begin = time.perf_counter()
        nll_N = []
        with torch.inference_mode():
            for start, end in itertools.pairwise(offsets):
                nll = 0.0
                for first in range(start, end - 1, context):
                    row = torch.from_numpy(tokens[first : min(first + context + 1, end)])
                    logits = model(row[None, :-1]).logits[0]
                    nll += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
                nll_N.append(nll)
        print(json.dumps({"seconds": time.perf_counter() - begin, "nll_N": nll_N}), flush=True)


if __name__ == "__main__":
    main()
