"""Writes `1226verifier_ft_all.json`: inputs that end in a yes/no question about an article, with soft targets.

Every row is made here from a fixed seed: `python3 mount/data/make_verifier_data.py`. The target is the probability of
"yes" that a panel of imagined annotators gives: articles with more words of a subject are surer to be about it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

NUM_TRAIN = 2000
NUM_EVAL = 300
SEED = 26

SUBJECTS = {
    "sports": ["match", "goal", "coach", "league", "player", "stadium", "team", "score", "season", "referee"],
    "cooking": ["oven", "flour", "recipe", "butter", "sauce", "chef", "kitchen", "pan", "garlic", "dough"],
    "weather": ["rain", "storm", "wind", "cloud", "forecast", "snow", "temperature", "sunshine", "fog", "humidity"],
}
PLAIN = [
    *("the", "report", "says", "that", "people", "in", "town", "spoke", "about", "it", "again"),
    *("on", "monday", "and", "nobody", "was", "surprised", "by", "the", "news"),
]
QUESTION = "Classify whether the article is {subject} related. Output yes or no.\n\narticle: {article}\noutput:"


def make_row(rng: random.Random) -> dict[str, object]:
    """An article about one subject (or none), and a question about the same or another."""
    about, asked = rng.choice([*SUBJECTS, None]), rng.choice(list(SUBJECTS))
    strength = rng.randint(1, 4) if about else 0
    words = rng.choices(PLAIN, k=rng.randint(8, 14))
    for _ in range(strength):
        words.insert(rng.randrange(len(words) + 1), rng.choice(SUBJECTS[about or asked]))
    surely = 0.5 + 0.12 * strength if about == asked else 0.02
    votes = sum(rng.random() < surely for _ in range(20))
    question = QUESTION.format(subject=asked, article=" ".join(words))
    return {"input": question, "target": votes / 20, "subject": asked}


def main() -> None:
    """Writes the file beside this script; no input stands in both splits."""
    rng = random.Random(SEED)
    rows: dict[str, dict[str, object]] = {}
    while len(rows) < NUM_TRAIN + NUM_EVAL:
        row = make_row(rng)
        rows[str(row["input"])] = row
    listed = list(rows.values())
    splits = {"train": listed[:NUM_TRAIN], "eval": listed[NUM_TRAIN:]}
    body = ",\n".join(
        f'"{split}": [\n' + ",\n".join(json.dumps(row) for row in part) + "\n]" for split, part in splits.items()
    )
    Path(__file__).with_name("1226verifier_ft_all.json").write_text("{" + body + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
