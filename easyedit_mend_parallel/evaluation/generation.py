"""Generates greedy text after many prompts in batches, with transformers' own `generate`.

Knows token ids, and nothing of how a text is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import GenerationConfig

from easyedit_mend_parallel.forward.calling import called_with

AT_ONCE = 64
"""Maximum number of texts that are generated together."""

Attach = Callable[[Sequence[int]], AbstractContextManager[None]]
"""From the indices of a batch's sequences, in order, to a context in which the model is called."""


def attach_nothing(_numbers: Sequence[int]) -> AbstractContextManager[None]:
    """Call the model without any edit."""
    return nullcontext()


@torch.no_grad()
def written(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    begun: Sequence[Sequence[int]] = (),
    attach: Attach = attach_nothing,
) -> list[tuple[list[int], bool]]:
    """Generate text after each prompt, always with the most probable token. Returns the token ids,
    and whether an end-of-text token (not included) followed.

    `limits` are the maximum numbers of tokens, one for each prompt. `begun` are ids with which each
    text begins after its prompt; they are not returned. Prompts of similar length are padded on the
    left and generated together, `AT_ONCE` in a batch; `attach` gets their indices. Sampling,
    penalties and stop rules of the model's generation config are ignored.
    """
    starts = [[*ids] for ids in begun] or [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda one: len(prompts[one]) + len(starts[one]))
    texts: list[tuple[list[int], bool]] = [([], False) for _ in prompts]
    with greedy(model, tokenizer) as ends:
        for at in range(0, len(order), AT_ONCE):
            chosen = [one for one in order[at : at + AT_ONCE] if limits[one] > 0]
            if not chosen:
                continue
            with attach(chosen):
                found = _batch(
                    model,
                    [prompts[one] for one in chosen],
                    [starts[one] for one in chosen],
                    max(limits[one] for one in chosen),
                )
            for one, ids in zip(chosen, found, strict=True):
                kept = ids[: limits[one]]
                end = next((n for n, token in enumerate(kept) if token in ends), None)
                texts[one] = kept[:end], end is not None
    return texts


def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int = 24
) -> list[str]:
    """The text that `model` generates greedily after each prompt: at most `new_tokens` tokens,
    without special tokens."""
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    found = written(model, tokenizer, ids, [new_tokens] * len(ids))
    return [tokenizer.decode(own, skip_special_tokens=True) for own, _ in found]


@contextmanager
def greedy(model: Any, tokenizer: Any) -> Iterator[set[int]]:
    """While the context lasts, `model.generate` is purely greedy. Yields the ids that end a text:
    the model's, or else the tokenizer's."""
    before = model.generation_config
    ends = before.eos_token_id if before is not None else None
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    padding = [tokenizer.pad_token_id, *ends, 0]
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=next(one for one in padding if one is not None),
        bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=_start(model, before),
    )
    try:
        yield set(ends)
    finally:
        model.generation_config = before


def _start(model: Any, config: Any) -> int | None:
    named = getattr(config, "decoder_start_token_id", None)
    return getattr(model.config, "decoder_start_token_id", None) if named is None else named


def _batch(
    model: Any, prompts: list[Sequence[int]], starts: list[list[int]], limit: int
) -> list[list[int]]:
    """The ids generated after each prompt and the start of its text, padded after an end."""
    decodes_alone = model.config.is_encoder_decoder
    read = prompts if decodes_alone else [[*p, *s] for p, s in zip(prompts, starts, strict=True)]
    padding = model.generation_config.pad_token_id
    inputs = called_with(model, {"input_ids": _left(read, padding), "attention_mask": _mask(read)})
    options: dict[str, Any] = {"max_new_tokens": limit}
    width = inputs["input_ids"].shape[1]
    if decodes_alone:
        first = [[model.generation_config.decoder_start_token_id, *start] for start in starts]
        options["decoder_input_ids"] = _left(first, padding).to(inputs["input_ids"].device)
        if len({len(one) for one in first}) > 1:
            options["decoder_attention_mask"] = _mask(first).to(inputs["input_ids"].device)
        width = options["decoder_input_ids"].shape[1]
    out = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **options
    )
    rows: list[list[int]] = out[:, width:].tolist()
    return rows


def _left(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[padding] * (width - len(row)) + [*row] for row in rows])


def _mask(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
