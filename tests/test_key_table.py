"""The look-up of scoped requests finds all that fire and no other, as if every cosine were formed,
however the table came to be."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from easyedit_mend_parallel.weights import key_table
from easyedit_mend_parallel.weights.key_table import KeyTable
from easyedit_mend_parallel.weights.row_keeper import KeptRows
from easyedit_mend_parallel.weights.scope import Scope, ScopedRequest, Thresholds
from easyedit_mend_parallel.weights.scoped_memory import ScopedMemory
from easyedit_mend_parallel.weights.update import LowRankUpdate

WIDTH, COUNT, TOKENS = 12, 300, 7
LIMITS = Thresholds(subject=0.2, alias=0.9, states=0.6)


def a_scope(**options: Any) -> Scope:
    values: dict[str, Any] = {
        "mean": torch.zeros(WIDTH),
        "std": torch.ones(WIDTH),
        "projection": torch.eye(WIDTH),
        "weigh": torch.linspace(-2, 2, WIDTH),
        "weigh_bias": torch.zeros(()),
        "scale": 3.0,
        "shift": -1.5,
        "thresholds": LIMITS,
    }
    return Scope("blocks", (1,), **(values | options))


def requests(scope: Scope, count: int = COUNT) -> list[ScopedRequest]:
    """Requests of one to nine tokens, every other with a subject of its own or another's."""
    torch.manual_seed(0)
    made = []
    for number in range(count):
        states = torch.randn(1 + number % 9, WIDTH)
        subject = (f"name{number // 4}",) if number % 2 else ()
        keys, weights = scope.keys(states)
        made.append(ScopedRequest(f"prompt {number}", "answer", keys, weights, subject))
    return made


def texts(asked: list[ScopedRequest]) -> Tensor:
    """(B, T, D): some of nobody's tokens, some with those of a request among them."""
    torch.manual_seed(1)
    found = torch.randn(24, TOKENS, WIDTH)
    for row in range(0, 24, 2):
        keys = asked[13 * row].keys
        noisy = keys + 0.05 * row * torch.randn_like(keys)
        found[row, : len(keys)] = noisy[:TOKENS]
    return found


def by_every_cosine(
    scope: Scope, asked: list[ScopedRequest], encoded: Tensor, standing: set[str]
) -> set[str]:
    """The prompts of those that fire in one text, by the formula alone."""
    fired = set()
    for request in asked:
        best = (request.keys @ encoded.T).amax(1)
        logit = float(scope.scale * (best * request.weights).sum() + scope.shift)
        limit = LIMITS.alias if request.subject else LIMITS.states
        if logit > limit or (request.prompt in standing and logit > LIMITS.subject):
            fired.add(request.prompt)
    return fired


def found_in(table: KeyTable, encoded: Tensor, real: Tensor, words: list[str]) -> list[set[str]]:
    """The prompts of those that fire in each text, as the table finds them."""
    possible = table.possible(table.lead(encoded, real))
    return [
        {
            table.request(index).prompt
            for index in table.fired(text[mask], indices, table.standing(words))
        }
        for text, mask, indices in zip(encoded, real, possible, strict=True)
    ]


@pytest.mark.parametrize("at_once", [1, key_table.AT_ONCE])
@pytest.mark.parametrize("scale", [3.0, 30.0])
def test_all_that_fire_are_found_and_no_other(
    scale: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_table, "AT_ONCE", at_once)
    scope = a_scope(scale=scale, shift=-scale / 2)
    asked = requests(scope)
    table = KeyTable.of(scope, ((request, n) for n, request in enumerate(asked)))
    encoded = F.normalize(texts(asked), dim=-1)
    real = torch.ones(encoded.shape[:2], dtype=torch.bool)
    real[::3, -2:] = False
    words = ["a", "name3", "name40"]
    standing = {one.prompt for one in asked if one.subject in (("name3",), ("name40",))}
    expected = [
        by_every_cosine(scope, asked, text[mask], standing)
        for text, mask in zip(encoded, real, strict=True)
    ]
    assert found_in(table, encoded, real, words) == expected
    assert any(expected)
    assert len({frozenset(one) for one in expected}) > 6
    kept = sum(map(len, table.possible(table.lead(encoded, real))))
    assert kept < COUNT * len(encoded) / 2


def test_a_table_is_the_same_however_it_came_to_be() -> None:
    scope = a_scope()
    asked = requests(scope)
    table = KeyTable(scope)
    order = list(range(COUNT))
    random.Random(0).shuffle(order)
    for number in [*order, *order[:100]]:
        table.put(asked[number].prompt, asked[number], number)
    for number in order[:200]:
        assert table.put(asked[number].prompt, None)
    for number in order[150:200]:
        table.put(asked[number].prompt, asked[number], number)
    left = sorted(order[150:])
    assert len(table) == len(left)
    assert table.slots <= COUNT
    encoded = F.normalize(texts(asked), dim=-1)
    real = torch.ones(encoded.shape[:2], dtype=torch.bool)
    other = KeyTable.of(scope, ((asked[n], n) for n in left))
    words = [f"name{number}" for number in range(COUNT)]
    assert found_in(table, encoded, real, words) == found_in(other, encoded, real, words)
    assert table.by_age(table.standing(words)) != sorted(table.standing(words))
    assert [r.prompt for r, _, _ in table.nearest(encoded[0], [], 5)] == [
        r.prompt for r, _, _ in other.nearest(encoded[0], [], 5)
    ]


def rows() -> KeptRows:
    return KeptRows(LowRankUpdate(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1).long()))


def a_memory(scope: Scope, asked: list[ScopedRequest]) -> ScopedMemory:
    memory = ScopedMemory(scope, lambda ids: " ".join(f"name{one}" for one in ids))
    for number, request in enumerate(asked):
        memory.add(request, "target", rows(), number)
    return memory


def prompts_of(decisions: Any) -> Any:
    return decisions and [[one and one.prompt for one in row] for row in decisions]


@pytest.mark.parametrize("skip_first", [False, True])
def test_reading_in_parts_decides_for_the_last_token_as_reading_at_once(skip_first: bool) -> None:
    scope = a_scope(skip_first=skip_first)
    asked = requests(scope)
    states, real = texts(asked), torch.ones(24, TOKENS, dtype=torch.bool)
    real[::3, :2] = False
    memory = a_memory(scope, asked)
    ids = torch.full((24, TOKENS), 999)
    whole, _ = memory.look_up(states, real, ids, None)
    reading, last = None, None
    for start, end in ((0, 1), (1, 4), (4, 6), (6, 7)):
        last, reading = memory.look_up(
            states[:, start:end], real[:, start:end], ids[:, start:end], reading
        )
    assert [row[-1:] for row in prompts_of(last)] == [row[-1:] for row in prompts_of(whole)]
    assert any(row[-1] for row in prompts_of(whole))


def test_what_was_read_before_an_edit_is_looked_up_anew_after_it() -> None:
    scope = a_scope()
    asked = requests(scope)
    states, real = texts(asked), torch.ones(24, TOKENS, dtype=torch.bool)
    memory = a_memory(scope, asked[1:])
    _, reading = memory.look_up(states[:, :-1], real[:, :-1], None, None)
    memory.add(asked[0], "target", rows(), COUNT)
    now, _ = memory.look_up(states[:, -1:], real[:, -1:], None, reading)
    assert prompts_of(now)[0] == ["prompt 0"]
    memory.take(asked[0], "target")
    now, _ = memory.look_up(states[:1], real[:1], None, None)
    assert prompts_of(now) is None or "prompt 0" not in prompts_of(now)[0]


def test_the_table_is_made_smaller_where_most_requests_were_taken_out() -> None:
    scope = a_scope()
    asked = requests(scope, 600)
    memory = a_memory(scope, asked)
    states = texts(asked)
    memory.look_up(states, torch.ones(24, TOKENS, dtype=torch.bool), None, None)
    for request in asked[20:]:
        memory.take(request, "target")
    assert memory._looked_up(states.device).slots <= 4 * 64
    assert len(memory._looked_up(states.device)) == 20


def test_an_edit_writes_one_slot_of_the_table() -> None:
    scope = a_scope()
    asked = requests(scope)
    memory = a_memory(scope, asked[:-1])
    table = memory._looked_up(torch.device("cpu"))
    memory.add(asked[-1], "target", rows(), COUNT)
    assert memory._looked_up(torch.device("cpu")) is table
    memory.take(asked[-1], "target")
    assert memory._looked_up(torch.device("cpu")) is table
    assert len(table) == COUNT - 1
