"""What the run cost: time and floating-point operations of each stage, and the price of pruning.

Training a token takes 6 N + 12 L D T FLOPs and scoring one 2 N, for N parameters, L layers, width D
and context T: what the mathematics asks for, without recomputation.
"""

from __future__ import annotations

from typing import Any

from jaxprune.artifact import Manifest
from jaxprune.config import Config
from jaxprune.data.store import TRAIN, TokenStore
from jaxprune.model import flops


def costs(config: Config, store: TokenStore, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Seconds, tokens, FLOPs and devices of each stage, and the overhead of pruning.

    `stages` joins the seeds of an arm, and all evaluations. `overhead` is what the reference model and
    the scoring add to one final run, as a share of its FLOPs.
    """
    stages: dict[str, dict[str, Any]] = {}
    for name, manifest in manifests.items():
        run = name.split()[-1]
        title = (
            f"train {config.final_runs[run][0]}"
            if name.startswith("train ") and run in config.final_runs
            else name
        )
        if name.startswith("evaluate "):
            title = "evaluate"
        stage = stages.setdefault(title, {"runs": 0, "seconds": 0.0, "tokens": 0, "flops": 0.0})
        stage["runs"] += 1
        stage["seconds"] += manifest.seconds
        stage["tokens"] += manifest.counts["tokens"] if name.startswith("train ") else 0
        stage["flops"] += manifest.counts["train_flops"] if name.startswith("train ") else 0.0
    train = store.documents(TRAIN)
    stages["score"]["tokens"] = int((store.offsets_N1[train + 1] - store.offsets_N1[train] - 1).sum())
    # Without attention, a third of training's FLOPs is the forward pass: 2 N.
    forward = flops.train_flops_per_token(config.reference.model, store.vocab_size, context=0) / 3
    stages["score"]["flops"] = forward * stages["score"]["tokens"]
    final = next(iter(config.final_runs))
    final_flops = manifests[f"train {final}"].counts["train_flops"]
    return {
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "flops": sum(stage["flops"] for stage in stages.values()),
        "final_flops": final_flops,
        "overhead": {
            "reference": stages["train reference"]["flops"] / final_flops,
            "scoring": stages["score"]["flops"] / final_flops,
        },
        "parameters": {
            "reference": flops.n_params(config.reference.model, store.vocab_size),
            "final": flops.n_params(config.final.model, store.vocab_size),
        },
        "devices": sorted(
            {m.counts["devices"] for name, m in manifests.items() if name.startswith("train ")}
        ),
    }
