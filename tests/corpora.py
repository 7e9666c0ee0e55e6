"""Small corpora for tests, made from a seed: three domains with words and habits of their own."""

import json
import random
from pathlib import Path

_SYLLABLES = [
    "ba",
    "be",
    "bi",
    "bo",
    "bu",
    "da",
    "de",
    "di",
    "do",
    "du",
    "ka",
    "ke",
    "ki",
    "ko",
    "ku",
    "la",
    "le",
    "li",
    "lo",
    "lu",
    "ma",
    "me",
    "mi",
    "mo",
    "mu",
    "na",
    "ne",
    "ni",
    "no",
    "nu",
]


def write_corpus(folder: Path, documents: int = 240, seed: int = 0) -> Path:
    """Writes `documents` documents of three domains as JSON lines; a tenth is noise."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, domain in enumerate(("prose", "code", "tables")):
        words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(60)]
        with (folder / f"{domain}.jsonl").open("w") as file:
            for i in range(number, documents, 3):
                n = rng.randint(30, 220)
                if rng.random() < 0.1:
                    text = "".join(chr(rng.randint(33, 126)) for _ in range(n * 3))
                elif domain == "prose":
                    text = " ".join(rng.choices(words[:30], k=n)) + ".\n"
                elif domain == "code":
                    text = "\n".join(
                        f"\t{rng.choice(words)} = {rng.choice(words)}({rng.randint(0, 9)})"
                        for _ in range(n // 4)
                    )
                else:
                    text = "\n".join(" | ".join(rng.choices(words[:15], k=4)) for _ in range(n // 4))
                file.write(json.dumps({"id": f"{domain}/{i}", "domain": domain, "text": text}) + "\n")
    return folder
