"""Answers in the making: what is streamed joins to the text, stop strings never leak, characters come whole."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from workflow.inference.sampling import SamplingParams
from workflow.inference.sequence import Answer

END = -1


def answer(**params) -> Answer:
    """An answer whose tokens are bytes of UTF-8."""

    def text_of(tokens) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")

    return Answer(0, SamplingParams(**{"max_new_tokens": 10_000} | params), 0, (END,), text_of)


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.booleans())
@settings(max_examples=400, deadline=None)
def test_streams_join_to_the_text(text, stops, ends):
    text = text.encode("utf-8", errors="ignore").decode()
    stops = [stop for stop in (stop.encode("utf-8", errors="ignore").decode() for stop in stops) if stop]
    made = answer(stop=tuple(stops))
    streamed = ""
    for byte in [*text.encode(), *([END] if ends else [])]:
        made.add(byte)
        chunk = made.chunk()
        streamed += chunk.text if chunk else ""
        assert not any(stop in streamed for stop in stops), "a stop string was streamed"
        assert "\N{REPLACEMENT CHARACTER}" not in streamed or "\N{REPLACEMENT CHARACTER}" in text
        if made.finish_reason:
            break
    if made.finish_reason is None:
        assert text.startswith(streamed)
        return
    assert streamed == made.text() == made.generation().text
    cut = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    if made.text() != text:
        assert cut is not None or "\N{REPLACEMENT CHARACTER}" in text
        assert text.startswith(made.text())


def test_finish_reasons_and_counts():
    made = answer(max_new_tokens=3)
    for byte in b"abc":
        made.add(byte)
    assert (made.finish_reason, made.num_tokens, made.text()) == ("length", 3, "abc")
    made = answer()
    for token in (*b"ab", END):
        made.add(token)
    assert (made.finish_reason, made.num_tokens, made.generation().token_ids) == ("stop", 3, tuple(b"ab"))
    made = answer(stop=("bc",))
    for byte in b"abc":
        made.add(byte)
    assert (made.finish_reason, made.num_tokens, made.text()) == ("stop", 3, "a")


def test_half_of_a_stop_string_is_held_back_and_released():
    made = answer(stop=("END",))
    texts = []
    for byte in b"xENyEND":
        made.add(byte)
        chunk = made.chunk()
        texts.append(chunk.text if chunk else "")
    assert texts == ["x", "", "", "ENy", "", "", ""]
    assert made.finish_reason == "stop"


def test_a_stop_string_that_looks_like_half_a_character_is_found_at_the_end():
    for ending in ([END], []):
        made = answer(stop=("a\N{REPLACEMENT CHARACTER}",), max_new_tokens=10_000 if ending else 6)
        for token in [*"aaa\N{REPLACEMENT CHARACTER}".encode(), *ending]:
            made.add(token)
        assert (made.finish_reason, made.text()) == ("stop", "aa")


def test_stops_before_the_least_length_stay_whether_streamed_or_not():
    texts = []
    for streamed in (False, True):
        made = answer(stop=("a",), min_new_tokens=4, max_new_tokens=9)
        for byte in b"xaxaxb":
            made.add(byte)
            if streamed:
                made.chunk()
            if made.finish_reason:
                break
        texts.append((made.text(), made.num_tokens, made.finish_reason))
    assert texts == [("xax", 4, "stop")] * 2
