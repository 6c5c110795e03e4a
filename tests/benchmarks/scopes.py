"""The time of a forward pass with scoped edits in the model, over that of the model without any;
and of the look-up alone, which a busy machine hides less.

    PYTHONPATH=tests python -m benchmarks.scopes [--shape NAME] [--edits N]

Prints JSON. Twelve tokens, and one token that goes on from a cache; no scope fires, or one does.
Random keys, in a scope with the numbers of the one that ships: its thresholds, its scale, and how
it weighs a request's tokens. As many requests as on SmolLM2's own states cannot be ruled out by
their leading keys. Rows have rank one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.rounds import compared, interleaved
from benchmarks.shapes import SHAPES, Shape, tokenizer, twin
from easyedit_mend_parallel.forward.block_states import block_states
from easyedit_mend_parallel.weights.gate import Gate, base_of
from easyedit_mend_parallel.weights.ledger import Ledger
from easyedit_mend_parallel.weights.scope import Scope, ScopedRequest, ScopedUpdate, Thresholds
from easyedit_mend_parallel.weights.target import find_targets

EDITS, TOKENS, BEFORE = 10_000, 12, 24
DIMENSIONS = 96
WEIGHTS = (0.39, 0.26, 0.18, 0.11, 0.04, 0.02)
"""Of a request's keys, the mean of 1,500 training facts."""
THRESHOLDS = Thresholds(subject=0.36, alias=2.16, states=1.27)
SCALE, SHIFT = 20.1, -13.8
NEAR = 0.003
"""The share of requests whose leading keys do not rule them out: measured for prompts of training
facts; for rephrases .002, for unrelated text none."""
ROUNDS = 40


def a_scope(shape: Shape) -> Scope:
    lowest = int(shape.targets[0].split(".")[2])
    width = 2 * shape.width
    flat = torch.zeros(width)
    return Scope(
        "model.layers",
        (max(1, round(lowest * 0.37)), lowest),
        mean=flat,
        std=flat + 1,
        projection=torch.randn(DIMENSIONS, width) / width**0.5,
        weigh=flat,
        weigh_bias=torch.zeros(()),
        scale=SCALE,
        shift=SHIFT,
        thresholds=THRESHOLDS,
        skip_first=True,
    )


def edited(shape: Shape, edits: int, near: Tensor, scope: Scope, model: Any) -> Any:
    """`model` with so many requests; some have two leading keys among the encoded tokens `near`
    (L, d), the first one has all its keys there."""
    keys = F.normalize(torch.randn(edits, len(WEIGHTS), DIMENSIONS), dim=-1)
    for number in range(1, int(NEAR * edits) + 1):
        keys[number, :2] = near[torch.randperm(len(near))[:2]]
    keys[0] = near[torch.arange(len(WEIGHTS)) % len(near)]
    weights = torch.tensor(WEIGHTS)
    asked = tuple(
        ScopedRequest(f"prompt {n}", "answer", keys[n], weights, (f"name{n}",) if n % 2 else ())
        for n in range(edits)
    )
    targets = find_targets(model, shape.targets)
    updates = {
        target.name: ScopedUpdate(
            torch.randn(edits, target.in_features).half(),
            1e-3 * torch.randn(edits, target.out_features).half(),
            torch.arange(edits),
            requests=asked,
            scope=scope,
            read=tokenizer().decode,
        )
        for target in targets
    }
    return Ledger.of(model).change(targets, updates, "scoped", keep_rows=False)


def measured(shape: Shape, edits: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = shape.model()
    plain, scope = twin(model), a_scope(shape)
    ids = torch.randint(2, 200, (3, BEFORE + 1))
    silent, fires, near = (row[None, :TOKENS] for row in ids)
    read = dict(block_states(model, scope.blocks_name, scope.blocks, ids[:, :TOKENS].tolist()))
    states, own = read[0], read[1]
    encoded = torch.cat([scope.encoded(own)[1:], scope.encoded(read[2])[1:]])
    entry = edited(shape, edits, encoded, scope, model)
    gate = Gate.of(model)
    assert gate is not None

    def forward(of: Any, text: Tensor) -> Callable[[], None]:
        return lambda: of(text, use_cache=False) and None

    def look_up(states: Tensor, ids: Tensor) -> Callable[[], None]:
        memory, real = gate.memory, torch.ones(ids.shape, dtype=torch.bool)
        return lambda: memory.look_up(states[None], real, ids, None) and None

    def one_more(of: Any) -> Callable[[], None]:
        cache = of(ids[:1, :BEFORE], use_cache=True).past_key_values

        def step() -> None:  # the cache grows by a token each time, as in generation
            of(ids[:1, BEFORE:], past_key_values=cache, use_cache=True)

        return step

    with torch.no_grad():
        assert torch.equal(model(silent).logits, plain(silent).logits)
        assert not torch.equal(model(fires).logits, plain(fires).logits)
        with base_of(model):
            assert torch.equal(model(fires).logits, plain(fires).logits)
        text = interleaved(
            {
                "without": forward(plain, silent),
                "no scope fires": forward(model, silent),
                "not ruled out": forward(model, near),
                "one fires": forward(model, fires),
                "look-up, no scope fires": look_up(states, silent),
                "look-up, one fires": look_up(own, fires),
            },
            rounds,
        )
        token = interleaved({"without": one_more(plain), "no scope fires": one_more(model)}, rounds)
    assert entry.applied
    memory = gate.memory
    return {
        "edits": edits,
        "text": compared(text, "without"),
        "token": compared(token, "without"),
        "key_bytes": memory.key_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="smollm2-135m", choices=list(SHAPES))
    parser.add_argument("--edits", type=int, default=EDITS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    print(json.dumps(measured(SHAPES[asked.shape], asked.edits, asked.rounds)))


if __name__ == "__main__":
    main()
