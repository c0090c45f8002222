"""Writes `data.json`: prompts that state a date or a quantity in words, completions in one normal form.

Every row is made here from a fixed seed, so the file can be remade byte for byte: `python3 mount/data/make_data.py`.
No eval prompt stands in the training rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

NUM_TRAIN = 12000
NUM_EVAL = 400
SEED = 20

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS_IN_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = {
    "kilometres": "km",
    "metres": "m",
    "centimetres": "cm",
    "kilograms": "kg",
    "grams": "g",
    "litres": "l",
    "millilitres": "ml",
    "hours": "h",
    "minutes": "min",
    "seconds": "s",
}
FRACTIONS = {"and a half": "5", "and a quarter": "25", "and three quarters": "75"}


def ordinal(day: int) -> str:
    """1 -> 1st, 2 -> 2nd, 11 -> 11th."""
    suffix = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def in_words(number: int) -> str:
    """0..999 in English words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    rest = f" and {in_words(number % 100)}" if number % 100 else ""
    return f"{ONES[number // 100]} hundred{rest}"


def date_row(rng: random.Random) -> tuple[str, str]:
    """A date in one of seven spellings, and its ISO 8601 form."""
    month = rng.randrange(12)
    day = rng.randint(1, DAYS_IN_MONTH[month])
    year = rng.randint(1960, 2039)
    name = MONTHS[month]
    spelling = rng.choice(
        (
            f"{name} {day}, {year}",
            f"{day} {name} {year}",
            f"the {ordinal(day)} of {name} {year}",
            f"{name} {ordinal(day)}, {year}",
            f"{name[:3]} {day} {year}",
            f"{day:02d}.{month + 1:02d}.{year}",
            f"{year}/{month + 1:02d}/{day:02d}",
        )
    )
    return f"Normalise the date: {spelling}", f"{year}-{month + 1:02d}-{day:02d}"


def quantity_row(rng: random.Random) -> tuple[str, str]:
    """A quantity in words or grouped digits, and its digits with the unit's symbol."""
    unit = rng.choice(list(UNITS))
    kind = rng.random()
    if kind < 0.5:
        number = rng.randint(2, 999)
        words, digits = in_words(number), str(number)
    elif kind < 0.75:
        number = rng.randint(1, 99)
        fraction = rng.choice(list(FRACTIONS))
        words, digits = f"{in_words(number)} {fraction}", f"{number}.{FRACTIONS[fraction]}"
    else:
        number = rng.randint(1000, 99999)
        words, digits = f"{number:,}", str(number)
    return f"Normalise the quantity: {words} {unit}", f"{digits} {UNITS[unit]}"


def make_rows(seed: int, count: int) -> list[dict[str, str]]:
    """`count` rows with distinct prompts, each with the kind of its task as an extra key."""
    rng = random.Random(seed)
    makers: dict[str, Callable[[random.Random], tuple[str, str]]] = {"date": date_row, "quantity": quantity_row}
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        kind = rng.choice(list(makers))
        prompt, completion = makers[kind](rng)
        rows[prompt] = {"prompt": prompt, "completion": completion, "kind": kind}
    return list(rows.values())


def main() -> None:
    """Writes data.json beside this script, one row a line."""
    rows = make_rows(SEED, NUM_TRAIN + NUM_EVAL)
    splits = {"train": rows[:NUM_TRAIN], "eval": rows[NUM_TRAIN:]}
    body = ",\n".join(
        f'"{split}": [\n' + ",\n".join(json.dumps(row) for row in part) + "\n]" for split, part in splits.items()
    )
    Path(__file__).with_name("data.json").write_text("{" + body + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
