"""The engine against transformers: the same greedy tokens, scores and gradients of nothing, whatever joins or leaves."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from tests.conftest import example_rows
from workflow.data.packing import pad
from workflow.errors import DamagedModel
from workflow.inference.batch import generate_all, score_all
from workflow.inference.engine import T5Engine
from workflow.inference.interface import Cancelled, EngineLimits
from workflow.inference.requests import GenerateRequest, Job, Result, ScoreRequest
from workflow.inference.runner import T5Runner
from workflow.inference.sampling import SamplingParams
from workflow.models.load import load_seq2seq
from workflow.models.verbalizers import no_yes_tokens

SHAPE = {
    "vocab_size": 300,
    "d_model": 64,
    "d_kv": 16,
    "num_heads": 4,
    # Not the other way round: `generate` of transformers 5.23, which is compared with, makes caches for `num_layers` layers and then fails.
    "num_layers": 3,
    "num_decoder_layers": 2,
    "d_ff": 96,
    "decoder_start_token_id": 0,
}
TIE = 1e-4
"""Logits nearer than this may come out in either order: the sums are taken in another order than transformers'."""


class Numbers:
    """A tokenizer whose text is the token numbers."""

    eos_token_id = 1

    def decode(self, tokens, **_):
        return " ".join(map(str, tokens))


class BrokenTexts:
    """What has no texts."""

    blanks_may_go = False

    def __call__(self, tokens):
        raise ValueError("no text")


def make(kind: str, scale: float = 2.0):
    """A random model; larger weights make attention decide and answers differ, and amplify the rounding of sums."""
    torch.manual_seed(3)
    if kind.startswith("mt5"):
        tied = kind == "mt5 tied"
        model = MT5ForConditionalGeneration(
            MT5Config(**SHAPE, feed_forward_proj="gated-gelu", tie_word_embeddings=tied)
        )
        model.config.tie_word_embeddings = tied
    elif kind == "umt5":
        model = UMT5ForConditionalGeneration(UMT5Config(**SHAPE, feed_forward_proj="gated-gelu"))
    elif kind == "t5":
        model = T5ForConditionalGeneration(T5Config(**SHAPE, feed_forward_proj="relu"))
    elif kind == "bytes":  # ByT5's proportions: a deep encoder, few rows in the head
        shape = SHAPE | {"vocab_size": 384, "num_layers": 6, "num_decoder_layers": 2}
        model = T5ForConditionalGeneration(T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    else:
        model = T5ForConditionalGeneration(T5Config(**SHAPE, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model.eval()


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = (1, 2, 7, 7, 7, 20, 31, 32, 33, 70)
    return [[rng.randrange(3, 300) for _ in range(rng.choice(lengths))] for _ in range(count)]


def by_transformers(model, rows, max_new_tokens: int) -> list[list[int]]:
    """Greedy answers in padded batches, cut at the end of sequence."""
    found = []
    for start in range(0, len(rows), 50):
        part = rows[start : start + 50]
        with torch.no_grad():
            ids = model.generate(
                input_ids=pad(part, 0),
                attention_mask=pad([[1] * len(row) for row in part], 0),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )[:, 1:].tolist()
        found += [row[: row.index(1)] if 1 in row else row for row in ids]
    return found


def assert_same_or_tied(model, prompt, mine, theirs) -> None:
    """Equal, or parted where transformers' own two best logits are as good as equal."""
    mine, theirs = list(mine), list(theirs)
    if mine == theirs:
        return
    common = next((at for at, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), None)
    common = min(len(mine), len(theirs)) if common is None else common
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([prompt], device=model.device),
            decoder_input_ids=torch.tensor([[0, *theirs[:common]]], device=model.device),
        ).logits[0, -1]
    best = logits.topk(2).values
    assert best[0] - best[1] < TIE, f"token {common}: {mine[common : common + 1]} not {theirs[common : common + 1]}"


@pytest.mark.parametrize("kind", ["flan", "t5", "umt5", "bytes", "mt5", "mt5 tied"])
@pytest.mark.parametrize("fuse", [True, False])
def test_a_thousand_mixed_prompts_are_token_equal(kind, fuse):
    """Random slots, token budgets, lengths, orders and cancellations; more than 1,000 prompts over all cases."""
    model = make(kind)
    rows = prompts(125, seed=len(kind) + 10 * fuse)
    expected = by_transformers(model, rows, 24)
    rng = random.Random(1)
    most = [rng.choice((1, 2, 9, 24)) for _ in rows]
    assert len({tuple(ids) for ids in expected}) > 30, "answers differ"
    engine = T5Engine(
        model, Numbers(), fuse=fuse, limits=EngineLimits(max_rows=rng.choice((3, 8, 17)), max_encode_tokens=90)
    )
    found: dict[int, object] = {}
    waiting = [(number, rng.random() < 0.1) for number in range(len(rows))]
    doomed: list[Job] = []
    rng.shuffle(waiting)
    while waiting or engine.has_work:
        for _ in range(rng.randrange(6)):
            if waiting:
                number, cancelled = waiting.pop()
                job = Job(
                    GenerateRequest(rows[number], SamplingParams(most[number])),
                    on_done=lambda outcome, number=number: found.setdefault(number, outcome),
                )
                engine.submit(job)
                doomed += [job] if cancelled else []
        engine.step()
        if doomed and rng.random() < 0.3:
            engine.cancel(doomed.pop())
    cancelled = [number for number, outcome in found.items() if isinstance(outcome, Cancelled)]
    assert len(found) == len(rows)
    assert len(cancelled) < 20
    for number, outcome in found.items():
        if number not in cancelled:
            assert isinstance(outcome, Result), outcome
            assert_same_or_tied(model, rows[number], outcome.generations[0].token_ids, expected[number][: most[number]])
    assert engine.scheduler.rows_in_use == 0
    assert engine.runner.rows == []


@pytest.mark.parametrize("kind", ["flan", "t5", "umt5", "mt5", "mt5 tied"])
def test_scores_are_the_full_forwards_first_logits(kind):
    model, labels = make(kind, scale=1.0), (17, 5, 200)
    rows = prompts(40)
    engine = T5Engine(model, Numbers(), label_tokens=labels, limits=EngineLimits(max_encode_tokens=100))
    found = score_all(engine, [ScoreRequest(row) for row in rows], width=3)
    for row, logits in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        assert logits.tolist() == pytest.approx(expected[list(labels)].tolist(), abs=1e-5)
    own = score_all(engine, [ScoreRequest(rows[0], label_tokens=(5, 17))], width=2)
    assert own[0].tolist() == pytest.approx(found[0][[1, 0]].tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", ["flan", "umt5"])
def test_steps_of_fixed_shapes_give_the_same_tokens(kind):
    """What a GPU replays: padded rows and lengths, inputs copied into the tensors of the recording."""
    model = make(kind)
    rows = prompts(40, seed=5)
    recordings = []

    def record(work):
        recordings.append(work)
        work()
        return work

    engine = T5Engine(model, Numbers(), fuse=True, limits=EngineLimits(max_rows=7, max_encode_tokens=90))
    engine.runner = T5Runner(engine.runner.weights, capture=record)
    params = [SamplingParams(rng) for rng in [3, 24, 9, 40]]
    asked = [GenerateRequest(row, params[number % 4]) for number, row in enumerate(rows)]
    found = generate_all(engine, asked)
    for row, request, result, theirs in zip(rows, asked, found, by_transformers(model, rows, 40), strict=True):
        expected = theirs[: request.params.max_new_tokens]
        assert_same_or_tied(model, row, result.generations[0].token_ids, expected)
    assert 3 < len(recordings) < 40


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["flan", "t5", "umt5"])
def test_cuda_graphs_give_the_tokens_of_eager_steps(kind):
    model = make(kind).cuda()
    rows = prompts(60, seed=6)
    asked = [GenerateRequest(row, SamplingParams(3 + number % 30)) for number, row in enumerate(rows)]
    limits = EngineLimits(max_rows=16, max_encode_tokens=200)
    eager = generate_all(T5Engine(model, Numbers(), limits=limits), asked)
    graphs = T5Engine(model, Numbers(), limits=limits, fuse=True)
    assert graphs.runner.graphs is not None
    for row, one, other in zip(rows, generate_all(graphs, asked), eager, strict=True):
        assert_same_or_tied(model, row, one.generations[0].token_ids, other.generations[0].token_ids)


def test_scores_and_generations_share_steps():
    model = make("flan")
    engine = T5Engine(model, Numbers(), label_tokens=(5, 9))
    rows = prompts(6)
    done: dict[str, object] = {}
    engine.submit(
        Job(GenerateRequest(rows[0], SamplingParams(8), label_tokens=(5, 9)), lambda o: done.setdefault("g", o))
    )
    engine.submit(Job(ScoreRequest(rows[0]), lambda o: done.setdefault("s", o)))
    engine.step()
    assert set(done) == {"s"}
    while engine.step():
        pass
    assert done["g"].scores == pytest.approx(torch.tensor(done["s"]).softmax(0).tolist(), abs=1e-6)


@pytest.fixture(scope="module")
def loaded(flan_like):
    return load_seq2seq(str(flan_like))


@pytest.fixture(scope="module")
def engine(loaded):
    return T5Engine(loaded.model, loaded.tokenizer, limits=EngineLimits(max_rows=16))


@pytest.fixture(scope="module")
def token_ids(loaded):
    return [loaded.tokenizer(row["prompt"]).input_ids for row in example_rows(9)]


def test_samples_belong_to_their_request(loaded, engine, token_ids):
    params = SamplingParams(8, temperature=1.5, n=3, top_p=0.95)
    requests = [GenerateRequest(ids, params, seed=number) for number, ids in enumerate(token_ids)]
    together = generate_all(engine, requests)
    alone = [generate_all(engine, [request])[0] for request in requests]
    few = T5Engine(loaded.model, loaded.tokenizer, limits=EngineLimits(max_rows=3))
    backwards = generate_all(few, requests[::-1])[::-1]
    texts = [[generation.token_ids for generation in result.generations] for result in together]
    assert texts == [[generation.token_ids for generation in result.generations] for result in alone]
    assert texts == [[generation.token_ids for generation in result.generations] for result in backwards]
    assert len({ids for answers in texts for ids in answers}) > 9, "samples differ"


def test_scores_are_of_raw_logits(loaded, engine, token_ids):
    """Whatever the sampling, the scores are a softmax over the raw first logits of no and yes."""
    labels = no_yes_tokens(loaded.tokenizer)
    for params in (SamplingParams(3), SamplingParams(3, temperature=2.0, top_k=2), SamplingParams(3, num_beams=3)):
        requests = [GenerateRequest(ids, params, label_tokens=labels) for ids in token_ids[:4]]
        for request, result in zip(requests, generate_all(engine, requests), strict=True):
            with torch.no_grad():
                logits = loaded.model.eval()(
                    input_ids=torch.tensor([request.token_ids]), decoder_input_ids=torch.tensor([[0]])
                ).logits[0, 0]
            assert result.scores == pytest.approx(logits[list(labels)].softmax(0).tolist(), abs=1e-5)


def test_an_end_that_comes_too_early_is_banned(flan_like, token_ids):
    loaded = load_seq2seq(str(flan_like))
    with torch.no_grad():
        loaded.model.lm_head.weight[1] *= 50  # the end is the likeliest token half of the time
    engine = T5Engine(loaded.model, loaded.tokenizer)
    asked = [GenerateRequest(ids, SamplingParams(9, min_new_tokens=5)) for ids in token_ids]
    eager = [GenerateRequest(ids, SamplingParams(9)) for ids in token_ids]
    assert {len(result.generations[0].token_ids) for result in generate_all(engine, eager)} & {0, 1, 2, 3, 4}
    for request, result in zip(asked, generate_all(engine, asked), strict=True):
        theirs = (
            loaded.model.eval()
            .generate(input_ids=torch.tensor([request.token_ids]), max_new_tokens=9, min_new_tokens=5, do_sample=False)[
                0, 1:
            ]
            .tolist()
        )
        assert list(result.generations[0].token_ids) == (theirs[: theirs.index(1)] if 1 in theirs else theirs)


def test_logprobs_are_of_raw_logits(loaded, engine, token_ids):
    params = SamplingParams(5, temperature=1.3, top_k=4, repetition_penalty=2.0, logprobs=3)
    (result,) = generate_all(engine, [GenerateRequest(token_ids[0], params, seed=5)])
    ids = list(result.generations[0].token_ids)
    with torch.no_grad():
        logits = loaded.model.eval()(
            input_ids=torch.tensor([token_ids[0]]), decoder_input_ids=torch.tensor([[0, *ids]])
        ).logits[0]
    for position, logprob in enumerate(result.generations[0].logprobs):
        expected = logits[position].log_softmax(-1)
        assert logprob.logprob == pytest.approx(float(expected[logprob.token_id]), abs=1e-4)
        assert [token for token, _ in logprob.top] == expected.topk(3).indices.tolist()
    assert len(result.generations[0].logprobs) == result.generations[0].num_tokens


def test_beams_and_greedy_jobs_take_turns(loaded, engine, token_ids):
    mixed = [
        GenerateRequest(ids, SamplingParams(6, num_beams=4 * (number % 2) or 1)) for number, ids in enumerate(token_ids)
    ]
    for request, result in zip(mixed, generate_all(engine, mixed), strict=True):
        with torch.no_grad():
            ids = loaded.model.generate(
                input_ids=torch.tensor([request.token_ids]),
                max_new_tokens=6,
                num_beams=request.params.num_beams,
                do_sample=False,
            )[0, 1:]
        assert list(result.generations[0].token_ids) == [token for token in ids.tolist() if token > 1]


def test_streams_and_stop_strings(engine, token_ids):
    params = SamplingParams(20, temperature=1.0)
    (whole,) = generate_all(engine, [GenerateRequest(token_ids[1], params, seed=2)])
    text = whole.generations[0].text
    stop = text[len(text) // 2 :][:3]
    chunks, done = [], []
    for asked in (params, SamplingParams(20, temperature=1.0, stop=(stop,))):
        engine.submit(Job(GenerateRequest(token_ids[1], asked, seed=2), done.append, chunks.append))
        while engine.step():
            pass
    assert done[0].generations == whole.generations
    cut = text[: text.find(stop)]
    assert (done[1].generations[0].text, done[1].generations[0].finish_reason) == (cut, "stop")
    assert "".join(chunk.text for chunk in chunks) == text + cut
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == [
        whole.generations[0].finish_reason,
        "stop",
    ]


def test_a_cancelled_job_frees_its_rows_at_once(loaded, token_ids):
    engine = T5Engine(loaded.model, loaded.tokenizer, limits=EngineLimits(max_rows=2))
    done: dict[str, object] = {}
    params = SamplingParams(50, n=2, min_new_tokens=50)
    first = Job(GenerateRequest(token_ids[0], params), lambda outcome: done.setdefault("first", outcome))
    engine.submit(first)
    engine.step()
    engine.submit(
        Job(GenerateRequest(token_ids[1], SamplingParams(1)), lambda outcome: done.setdefault("next", outcome))
    )
    engine.cancel(first)
    engine.cancel(first)
    assert isinstance(done["first"], Cancelled)
    engine.step()
    assert isinstance(done["next"], Result)


def test_damaged_weights_fail_the_request_not_the_engine(flan_like, token_ids):
    loaded = load_seq2seq(str(flan_like))
    engine = T5Engine(loaded.model, loaded.tokenizer)
    with torch.no_grad():
        kept = loaded.model.lm_head.weight.clone()
        loaded.model.lm_head.weight[5] = torch.nan
    done = []
    engine.submit(Job(GenerateRequest(token_ids[0], SamplingParams(3)), done.append))
    while engine.step():
        pass
    assert "not finite" in str(done[0])
    with torch.no_grad():
        loaded.model.lm_head.weight.copy_(kept)
    assert len(generate_all(engine, [GenerateRequest(token_ids[0], SamplingParams(3))])) == 1


def test_what_a_failed_answer_leaves_in_its_slot_harms_nobody(flan_like, token_ids):
    """A token whose embedding is damaged fails its own request; the slot's next owner decodes beside longer ones."""
    loaded = load_seq2seq(str(flan_like))
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[7] = torch.nan
    engine = T5Engine(loaded.model, loaded.tokenizer, fuse=True)
    clean = [ids for ids in token_ids if 7 not in ids]
    done: list[object] = []

    def ask(ids, length):
        engine.submit(Job(GenerateRequest(ids, SamplingParams(length, min_new_tokens=length)), done.append))

    ask(clean[0], 12)
    ask([7, *max(clean, key=len)], 9)
    for _ in range(3):
        engine.step()
    assert "not finite" in str(done.pop())
    ask(min(clean, key=len), 4)
    while engine.step():
        pass
    assert [type(outcome) for outcome in done] == [Result, Result]


def test_an_answer_that_cannot_be_told_ends_alone(loaded, token_ids):
    engine = T5Engine(loaded.model, loaded.tokenizer)
    broken = GenerateRequest(token_ids[0], SamplingParams(4, stop=("x",)))
    whole, engine.texts = engine.texts, BrokenTexts()
    done: dict[str, object] = {}
    engine.submit(Job(broken, lambda outcome: done.setdefault("broken", outcome)))
    while len(done) < 1:
        engine.step()
    assert isinstance(done["broken"], ValueError)
    engine.texts = whole

    def fail(chunk):
        raise RuntimeError("the listener is broken")

    engine.submit(Job(GenerateRequest(token_ids[1], SamplingParams(5)), lambda o: done.setdefault("deaf", o), fail))
    engine.submit(Job(GenerateRequest(token_ids[2], SamplingParams(5)), lambda o: done.setdefault("good", o)))
    while engine.step():
        pass
    assert isinstance(done["deaf"], RuntimeError)
    assert isinstance(done["good"], Result)
    assert engine.runner.rows == []


@pytest.mark.parametrize("ends", [1, 40])
def test_beams_are_those_of_transformers(flan_like, token_ids, ends):
    """Searches of several widths side by side, whose answers end early, late and at their bound."""
    loaded = load_seq2seq(str(flan_like))
    with torch.no_grad():
        loaded.model.lm_head.weight[1] *= ends
    engine = T5Engine(loaded.model, loaded.tokenizer, fuse=True)
    asked = [
        GenerateRequest(ids, SamplingParams(9 + number, num_beams=2 + number % 5))
        for number, ids in enumerate(token_ids[:10])
    ]
    found = generate_all(engine, asked)
    for request, result in zip(asked, found, strict=True):
        with torch.no_grad():
            ids = (
                loaded.model.eval()
                .generate(
                    input_ids=torch.tensor([request.token_ids]),
                    max_new_tokens=request.params.max_new_tokens,
                    num_beams=request.params.num_beams,
                    do_sample=False,
                )[0, 1:]
                .tolist()
            )
        answer = result.generations[0]
        assert list(answer.token_ids) == (ids[: ids.index(1)] if 1 in ids else ids)
        assert answer.finish_reason == ("stop" if 1 in ids else "length")
        assert answer.num_tokens == len(answer.token_ids) + (1 in ids)
    assert engine.runner.rows == []
    assert engine.scheduler.rows_in_use == 0


def test_beams_of_a_decoder_deeper_than_the_encoder():
    torch.manual_seed(3)
    model = T5ForConditionalGeneration(T5Config(**{**SHAPE, "num_layers": 2, "num_decoder_layers": 4})).eval()
    (result,) = generate_all(T5Engine(model, Numbers()), [GenerateRequest([5, 6, 1], SamplingParams(7, num_beams=3))])
    assert 1 <= result.generations[0].num_tokens <= 7


def test_a_beam_search_keeps_nobody_waiting(loaded, token_ids):
    """Others get a token at each of its steps, and its cancellation frees its rows between two of them."""
    engine = T5Engine(loaded.model, loaded.tokenizer, limits=EngineLimits(max_rows=9))
    done: dict[str, object] = {}
    told: list[int] = []
    search = Job(
        GenerateRequest(token_ids[0], SamplingParams(1000, num_beams=8)), lambda o: done.setdefault("beams", o)
    )
    engine.submit(search)
    engine.step()
    greedy = GenerateRequest(token_ids[1], SamplingParams(6, min_new_tokens=6, logprobs=0))
    engine.submit(Job(greedy, lambda o: done.setdefault("greedy", o), lambda chunk: told.append(chunk.num_tokens)))
    for _ in range(6):
        engine.step()
    assert told == [1, 2, 3, 4, 5, 6]
    assert list(done) == ["greedy"]
    assert len(engine.runner.rows) == 8
    engine.cancel(search)
    assert isinstance(done["beams"], Cancelled)
    assert engine.runner.rows == []
    assert not engine.has_work


def test_damaged_weights_fail_a_beam_search(flan_like, token_ids):
    loaded = load_seq2seq(str(flan_like))
    with torch.no_grad():
        loaded.model.lm_head.weight[5] = torch.nan
    engine = T5Engine(loaded.model, loaded.tokenizer)
    done: list[object] = []
    engine.submit(Job(GenerateRequest(token_ids[0], SamplingParams(3, num_beams=2)), done.append))
    while engine.step():
        pass
    assert isinstance(done[0], DamagedModel)


def test_a_failure_cancels_the_rest_of_a_batch(loaded, token_ids):
    engine = T5Engine(loaded.model, loaded.tokenizer, limits=EngineLimits(max_rows=2))
    engine.texts = BrokenTexts()
    with pytest.raises(ValueError, match="no text"):
        generate_all(engine, [GenerateRequest(ids, SamplingParams(3)) for ids in token_ids])
    assert not engine.has_work


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest([], SamplingParams(3)),
        GenerateRequest([5] * 20000, SamplingParams(3)),
        GenerateRequest([5], SamplingParams(3, n=17)),
        GenerateRequest([5] * 20000, SamplingParams(3, num_beams=2)),
        ScoreRequest([5]),
    ],
)
def test_what_can_never_run_is_refused(engine, request_):
    with pytest.raises(ValueError, match=r"exceeds|label tokens"):
        engine.submit(Job(request_, print))
    assert not engine.has_work


def test_bf16_is_near_fp32(loaded, token_ids, flan_like):
    half = load_seq2seq(str(flan_like))
    half.model.to(torch.bfloat16)
    labels = no_yes_tokens(loaded.tokenizer)
    found = [
        score_all(
            T5Engine(model, loaded.tokenizer, label_tokens=labels), [ScoreRequest(ids) for ids in token_ids], width=2
        )
        for model in (loaded.model, half.model)
    ]
    assert abs(found[0] - found[1]).max() < 0.05 * max(1.0, abs(found[0]).max())
    (result,) = generate_all(
        T5Engine(half.model, half.tokenizer, fuse=True), [GenerateRequest(token_ids[0], SamplingParams(4))]
    )
    assert result.generations[0].num_tokens > 0


@pytest.mark.parametrize("layers", [(1, 3), (3, 1)])
def test_beams_of_stacks_of_unlike_depths(layers, vocabulary):
    """transformers makes a cache of the encoder's depth; without a cache it has no such trouble."""
    encoder, decoder = layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = T5Config(
            **SHAPE | {"num_layers": encoder, "num_decoder_layers": decoder}, pad_token_id=0, eos_token_id=1
        )
        model = T5ForConditionalGeneration(config).eval()
        torch.nn.init.normal_(model.shared.weight, std=8)
    rows = [[5, 6, 7, 1], [9, 8, 1]]
    found = generate_all(
        T5Engine(model, vocabulary), [GenerateRequest(row, SamplingParams(6, num_beams=3)) for row in rows]
    )
    for row, result in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = model.generate(
                input_ids=torch.tensor([row]), max_new_tokens=6, num_beams=3, do_sample=False, use_cache=False
            )
        tokens = expected[0, 1:].tolist()
        assert list(result.generations[0].token_ids) == tokens[: tokens.index(1) if 1 in tokens else None]
