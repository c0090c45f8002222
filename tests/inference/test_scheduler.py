"""The scheduler as a property: budgets hold at every step, kinds are first in first out, all are admitted in the end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow.inference.scheduler import Demand, Limits, Scheduler

LIMITS = Limits(max_rows=5, max_tokens=40, max_held=60)


class Item:
    def __init__(self, number: int, life: int) -> None:
        self.number, self.life = number, life


demands = st.lists(
    st.tuples(
        st.sampled_from(["generate", "generate", "score"]),
        st.integers(1, LIMITS.max_tokens),
        st.integers(1, LIMITS.max_rows),
        st.integers(1, 4),  # steps that it runs
        st.integers(0, 3),  # steps before it arrives
        st.booleans(),  # cancelled one step later
    ),
    max_size=25,
)


@given(demands)
@settings(max_examples=300, deadline=None)
def test_budgets_order_and_no_starving(plan):
    scheduler: Scheduler[Item] = Scheduler(LIMITS)
    admitted: dict[str, list[int]] = {"generate": [], "score": []}
    expected: dict[str, list[int]] = {"generate": [], "score": []}
    arrivals = [(sum(row[4] for row in plan[: number + 1]), number) for number in range(len(plan))]
    running: list[tuple[Item, Demand]] = []
    dropped: set[int] = set()
    doomed: list[Item] = []
    for step in range(500):
        while arrivals and arrivals[0][0] <= step:
            _, number = arrivals.pop(0)
            kind, tokens, rows, life, _, cancelled = plan[number]
            item = Item(number, life)
            held = min(LIMITS.max_held, 7 * rows) if kind == "generate" else 0
            scheduler.add(Demand(item, kind, tokens, rows if kind == "generate" else 0, held=held))
            expected[kind].append(number)
            doomed += [item] if cancelled else []
        found = scheduler.admit()
        assert sum(demand.tokens for demand in found) <= LIMITS.max_tokens
        for demand in found:
            admitted[demand.kind].append(demand.item.number)
            if demand.kind != "score":
                running.append((demand.item, demand))
        assert sum(demand.rows for _, demand in running) == scheduler.rows_in_use <= LIMITS.max_rows
        assert sum(demand.held for _, demand in running) <= LIMITS.max_held
        for item in doomed:
            scheduler.drop(item)
            dropped.add(item.number)
            running = [entry for entry in running if entry[0] is not item]
        doomed = []
        for entry in list(running):
            entry[0].life -= 1
            if entry[0].life == 0:
                scheduler.drop(entry[0])
                running.remove(entry)
        if not arrivals and not running and not scheduler.num_waiting:
            break
    else:
        pytest.fail("somebody starved")
    for kind, numbers in admitted.items():
        assert numbers == [number for number in expected[kind] if number in numbers], "first in, first out"
        assert set(expected[kind]) - set(numbers) <= dropped


def test_scores_pass_generations_that_wait_for_rows():
    scheduler: Scheduler[str] = Scheduler(LIMITS)
    scheduler.add(Demand("long", "generate", 10, 5))
    scheduler.add(Demand("waits", "generate", 10, 1))
    scheduler.add(Demand("score", "score", 10))
    assert [demand.item for demand in scheduler.admit()] == ["long", "score"]
    assert scheduler.admit() == []
    scheduler.drop("long")
    assert [demand.item for demand in scheduler.admit()] == ["waits"]


@pytest.mark.parametrize(
    "demand",
    [
        Demand("x", "generate", 41, 1),
        Demand("x", "generate", 1, 6),
        Demand("x", "score", 0),
        Demand("x", "generate", 1, 1, held=61),
    ],
)
def test_what_can_never_run_is_refused(demand):
    with pytest.raises(ValueError, match="exceeds"):
        Scheduler(LIMITS).add(demand)
