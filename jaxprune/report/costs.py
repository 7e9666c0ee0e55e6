"""What the run cost: time and floating-point operations of each stage, and the price of pruning.

Training a token takes 6 N + 12 L D T FLOPs, for N parameters, L layers, width D and context T, and
scoring or evaluating one, which is the forward pass, a third of that: what the mathematics asks for in
rows of T, without recomputation and padding.
"""

from __future__ import annotations

from typing import Any

from jaxprune.artifact import Manifest
from jaxprune.config import Config
from jaxprune.model import flops


def costs(config: Config, vocab_size: int, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Seconds, tokens, FLOPs and devices of each stage, and the overhead of pruning.

    `stages` joins the seeds of an arm, and all evaluations. `overhead` is what the training of the models
    that score, and the scoring, add to one final run, as a share of its FLOPs; further signals are not in it.
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
        if title.startswith(("train ", "score", "evaluate")):
            stage["tokens"] += manifest.counts["tokens"]
        if title.startswith("train "):
            stage["flops"] += manifest.counts["train_flops"]
    stages["score"]["flops"] = manifests["score"].counts["flops"]
    final_model = config.final.model
    forward_flops = flops.train_flops_per_token(final_model, vocab_size, final_model.context) / 3
    stages["evaluate"]["flops"] = stages["evaluate"]["tokens"] * forward_flops
    final = next(iter(config.final_runs))
    final_flops = manifests[f"train {final}"].counts["train_flops"]
    return {
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "flops": sum(stage["flops"] for stage in stages.values()),
        "final_flops": final_flops,
        "overhead": {
            "training": sum(stages[f"train {name}"]["flops"] for name in config.scorers) / final_flops,
            "scoring": stages["score"]["flops"] / final_flops,
        },
        "parameters": {
            "scoring": manifests["score"].counts["parameters"],
            "final": flops.n_params(final_model, vocab_size),
        },
        "devices": sorted(
            {m.counts["devices"] for name, m in manifests.items() if name.startswith("train ")}
        ),
    }
