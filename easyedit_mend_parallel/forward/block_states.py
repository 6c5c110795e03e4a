"""Computes the hidden states of texts that enter some blocks of a model, for scopes.

The forward pass ends at the last of those blocks, except under an engine that has to see its end
(FSDP2, ZeRO-3). Knows nothing of how the states are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.forward.calling import called_with
from easyedit_mend_parallel.forward.capture import evaluating
from easyedit_mend_parallel.forward.trunk import ForwardStopped
from easyedit_mend_parallel.weights.engines import gathers

TOKENS_AT_ONCE = 1024
"""Maximum number of tokens, including padding, in one call of the blocks."""


def block_states(
    model: nn.Module, blocks_name: str, blocks: Sequence[int], texts: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the text, its states (T, D)) for each text, grouped by length.

    `blocks` are the indices, ascending, of blocks in the list `blocks_name`; their states are
    concatenated in D. `texts` are token ids. States are on the CPU, in the model's dtype.
    """
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    while order:
        width = len(texts[order[0]])
        count = 1
        while count < len(order):
            width = len(texts[order[count]])
            if (count + 1) * width > TOKENS_AT_ONCE:
                break
            count += 1
        chosen, order = order[:count], order[count:]
        states = _states(model, blocks_name, blocks, [texts[number] for number in chosen])
        for number, row in zip(chosen, states, strict=True):
            yield number, row[: len(texts[number])]


@torch.no_grad()
def _states(
    model: Any, blocks_name: str, blocks: Sequence[int], texts: Sequence[Sequence[int]]
) -> Tensor:
    """(B, T, D) on the CPU, padded on the right."""
    width = max(map(len, texts))
    padded = [[*ids, *[0] * (width - len(ids))] for ids in texts]
    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]
    inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    seen: dict[int, Tensor] = {}

    def see(number: int, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[number] = (args[0] if args else kwargs["hidden_states"]).detach().cpu()
        if number == blocks[-1] and not gathers(model, f"{blocks_name}.{number}"):
            raise ForwardStopped

    found = [block for _, block in model.get_submodule(blocks_name).named_children()]
    with ExitStack() as stack:
        for number in blocks:
            hook = partial(see, number)
            handle = found[number].register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        with evaluating(model), suppress(ForwardStopped):
            model(**called_with(model, inputs))
    return torch.cat([seen[number] for number in blocks], -1)
