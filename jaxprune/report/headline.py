"""The first lines of the report: what was pruned, what it gained, and what mixture was used, in words.

A gain is claimed only where the 95 % interval excludes zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxprune.report.numbers import count, decimals, percent, perplexity, short, signed

Verdict = Literal["better", "worse", "no difference", "no interval"]

ARMS = {
    "none": "no pruning",
    "random": "random pruning",
    "pruned": "pruning",
    "reweighted": "random pruning, re-weighted",
    "within_domain": "pruning inside each domain",
}


_LISTED = 12  # domains in a sentence


def verdict(change: Mapping[str, Any]) -> Verdict:
    """What a difference of losses shows: its interval must exclude zero to be better or worse."""
    if change["low"] is None:
        return "no interval"
    if change["high"] < 0:
        return "better"
    return "worse" if change["low"] > 0 else "no difference"


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Sentences: `pruned`, `gains` (one for each baseline of `pruned`), `mixture`, `controls`, `caution`."""
    against = {(entry["arm"], entry["base"]): entry for entry in figures["comparisons"]}
    return {
        "pruned": pruned(figures["pruning"]),
        "gains": [
            {
                "base": base,
                "claims": [
                    {"where": where, "verdict": verdict(change), "title": _title(change, figures)}
                    for place, where in (("mean", "mean over domains"), ("all", "natural mix"))
                    for change in [entry["bits_per_byte"][place]]
                ],
                "sentence": f"Against {ARMS[base]}, in the mean over domains, pruning "
                f"{result(entry, 'mean', figures)}; on the natural mix of the corpus it {result(entry, 'all', figures)}.",
            }
            for base in ("none", "random")
            if (entry := against.get(("pruned", base))) is not None
        ],
        "mixture": _mixture(figures),
        "controls": _controls(figures, against),
        "caution": (
            "Held-out loss does not settle it: in the pruning paper, perplexity on the original mix became worse "
            "under pruning while downstream tasks became better"
        ),
    }


def result(entry: Mapping[str, Any], place: str, figures: Mapping[str, Any]) -> str:
    """What one comparison shows at one place (`mean` or `all`), as the end of a sentence: `gained 0.012 bits per byte ...`."""
    bits, nats = entry["bits_per_byte"][place], entry["nll"][place]
    match verdict(bits):
        case "better":
            return f"gained {_measured(bits, nats, -1, decimals)}"
        case "worse":
            return f"made it worse by {_measured(bits, nats, 1, decimals)}"
        case "no difference":
            return f"made no difference that {_seeds(figures)} can show: {_measured(bits, nats, 1, signed)}"
        case "no interval":
            why = "one seed" if len(figures["seeds"]) == 1 else "one held-out document in a domain"
            sign, word = (-1, "better") if bits["value"] < 0 else (1, "worse")
            return (
                f"came out {word} by {_measured(bits, nats, sign, decimals)}, which may be chance: "
                f"with {why} there is no interval"
            )


def _measured(
    bits: Mapping[str, Any], nats: Mapping[str, Any], sign: int, write: Callable[[float], str]
) -> str:
    """Both measures of a difference, times `sign`, with their intervals."""
    said = []
    for change, unit in ((bits, "bits per byte"), (nats, "nats per token")):
        amount = f"{write(sign * change['value'])} {unit}"
        if change["low"] is not None:
            low, high = sorted((sign * change["low"], sign * change["high"]))
            amount += f" ({'' if said else '95 % interval '}{write(low)} to {write(high)})"
        said.append(amount)
    return ", ".join(said)


def _title(change: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    amount = f"{decimals(abs(change['value']))} bits per byte"
    match verdict(change):
        case "better":
            return f"Gained {amount}"
        case "worse":
            return f"Made it worse by {amount}"
        case "no difference":
            return f"No difference that {_seeds(figures)} can show"
        case "no interval":
            return "Too little to tell"


def _seeds(figures: Mapping[str, Any]) -> str:
    number = len(figures["seeds"])
    return f"{ {2: 'two', 3: 'three', 4: 'four', 5: 'five'}.get(number, number) } seeds"


def pruned(pruning: Mapping[str, Any]) -> str:
    """What a selection kept, and by which rule, from its rule, its sizes before and after, and its thresholds."""
    before, after, rule = pruning["before"], pruning["after"], pruning["rule"]
    if rule is None:
        return f"Nothing was pruned: all {count(before['documents'])} documents were kept."
    share = rule["rate"]
    if rule["criterion"] == "threshold" or rule.get("rates"):  # the share follows from something else
        share = after[rule["weight"]] / max(before[rule["weight"]], 1)
    kept = (
        f"Pruning kept {percent(share)} of the {rule['weight']}, {_kind(rule)}: "
        f"{count(after['documents'])} of {count(before['documents'])} documents and "
        f"{short(after['tokens'])} of {short(before['tokens'])} tokens ({percent(after['tokens'] / before['tokens'])})"
    )
    if rule["scope"] == "domain":
        return f"{kept}, ranked inside each domain."
    edges = next(iter(pruning["thresholds"].values()))  # the same in every domain
    words = {"low": "from", "high": "up to" if edges["low"] is None else "to"}
    first = rule.get("signals", ["perplexity"])[0]
    write = perplexity if first == "perplexity" else lambda value: f"{value:.4g}"
    band = " ".join(f"{words[edge]} {write(value)}" for edge, value in edges.items() if value is not None)
    return f"{kept}, {f'of {_words(first)} {band}, ' if band else ''}ranked over the whole corpus."


def _kind(rule: Mapping[str, Any]) -> str:
    """Which documents a rule keeps."""
    signals = [_words(signal) for signal in rule.get("signals", ["perplexity"])]
    joined = signals[0] if len(signals) == 1 else f"{', '.join(signals[:-1])} and {signals[-1]}"
    if len(signals) > 1 and rule["combine"] == "product":
        joined = f"product of the ranks of {joined}"
    match rule["criterion"]:
        case "random":
            return "chosen at random"
        case "proportional":
            return f"drawn in proportion to exp({joined} / {rule['temperature']:g})"
        case "threshold":
            return f"those of {joined} between fixed thresholds"
        case criterion:
            band = {"low": "lowest", "medium": "medium", "high": "highest"}[criterion]
            together = " at once" if len(signals) > 1 and rule["combine"] == "intersection" else ""
            return f"those of {band} {joined}{together}"


def _words(signal: str) -> str:
    return signal.replace("_", " ")


def _mixture(figures: Mapping[str, Any]) -> str:
    mixture = figures["mixture"]
    arm = "pruned" if "pruned" in figures["arms"] else figures["arms"][0]
    weights = sorted(((e["weight"], d) for d, e in mixture["arms"][arm].items()), reverse=True)
    shown = weights if len(weights) <= _LISTED else weights[: _LISTED - 1]
    listed = [f"{domain} {percent(weight)}" for weight, domain in shown]
    rest = f" and {len(weights) - len(shown)} more domains" if len(weights) > len(shown) else ""
    method = {
        "natural": "each domain in proportion to its kept tokens",
        "uniform": "every domain alike",
        "temperature": f"the kept tokens of each domain to the power 1/{mixture['temperature']}",
        "fixed": "fixed weights",
    }[mixture["method"]]
    return (
        f"Arm {arm} trained on {', '.join(listed)}{rest} ({mixture['method']}: {method}); every arm on "
        f"{short(figures['training_tokens'])} tokens."
    )


def _controls(figures: Mapping[str, Any], against: Mapping[tuple[str, str], Any]) -> list[str]:
    """What the control arms say about where a gain comes from, or that they were not run."""
    questions = {
        (
            "reweighted",
            "random",
        ): "The change of mixture alone (random pruning re-weighted to the mixture of pruning, "
        "against random pruning)",
        (
            "pruned",
            "reweighted",
        ): "The choice of documents alone (pruning against that re-weighted random pruning)",
        (
            "within_domain",
            "random",
        ): "Pruning inside each domain, which leaves the mixture as it was (against random pruning)",
    }
    said = [
        f"{question} {result(against[pair], 'mean', figures)}."
        for pair, question in questions.items()
        if pair in against
    ]
    follows = figures["mixture"]["method"] in ("natural", "temperature")  # weights follow what is kept
    remixes = "pruned" in figures["arms"] and figures["pruning"]["rule"]["scope"] == "global" and follows
    missing = [arm for arm in ("reweighted", "within_domain") if arm not in figures["arms"]]
    if remixes and missing:
        arms = f"arms {missing[0]} and {missing[1]} were" if len(missing) > 1 else f"arm {missing[0]} was"
        said.append(
            f"The control {arms} not run: ranking the whole corpus also changes the mixture of domains, so what "
            "looks like a gain of pruning may be a gain of re-mixing."
        )
    return said
