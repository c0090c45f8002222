"""Chooses which special tokens a run keeps in its answers: those that its data's completions hold."""

from __future__ import annotations

from collections.abc import Mapping

from workflow.data.examples import Examples
from workflow.data.features import Features
from workflow.data.marks import Held, blanks_beside, held_tokens, written_out
from workflow.models.answers import AnswerTexts, Blanks


def answers_of(
    answers: AnswerTexts, examples: Examples, features: Mapping[str, Features]
) -> tuple[AnswerTexts, list[str]]:
    """Answers that also keep what the completions of these splits hold, and findings about that, one line each."""
    held = {
        split: held_tokens(found, [*answers.added, *answers.never_shown], ends=answers.ends)
        for split, found in features.items()
        if len(found)
    }
    numbers = {number for found in held.values() for number in found.rows}
    marks = {number: text for number, text in answers.added.items() if number in numbers}
    unknown = answers.tokenizer.unk_token_id
    if unknown in marks and not any(
        written_out(examples.split(split), found.first, marks[unknown]) for split, found in held.items()
    ):
        del marks[unknown]  # it stands for what the vocabulary has no piece for
    if not marks:
        return answers, _findings(answers, held, {})
    texts = (examples.split(split)[row]["completion"] for split, found in held.items() for row in found.first)
    seen = blanks_beside(texts, [*marks.values()])
    kept = {mark: answers.lost_blanks(mark, Blanks(*blanks)) for mark, blanks in seen.items()}
    special = {number: text for number, text in marks.items() if number in answers.special}
    return answers.keeping(kept), _findings(answers, held, special)


def _findings(answers: AnswerTexts, held: Mapping[str, Held], kept: Mapping[int, str]) -> list[str]:
    found = []
    for split, of in held.items():
        if shown := _listed(of, kept):
            found.append(f"{split}: completions hold special tokens, which answers keep: {shown}")
        if of.ends_inside:
            ends = " or ".join(map(str, answers.tokenizer.convert_ids_to_tokens([*answers.ends])))
            found.append(
                f"{split}: {of.ends_inside} completions hold an end of sequence ({ends}) before their end: nothing can be "
                "generated past it"
            )
        if shown := _listed(of, answers.never_shown):
            found.append(f"{split}: completions hold padding or the decoder's start, which answers never show: {shown}")
    return found


def _listed(held: Held, tokens: Mapping[int, str], most: int = 5) -> str:
    """`<extra_id_0> (8 rows), ...`, the most frequent first."""
    rows = [(number, count) for number, count in held.rows.most_common() if number in tokens]
    shown = [f"{tokens[number]} ({count} rows)" for number, count in rows[:most]]
    return ", ".join([*shown, *([f"and {len(rows) - most} more"] if len(rows) > most else [])])
