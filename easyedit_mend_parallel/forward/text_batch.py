"""Makes batches of plain texts, in which the last token of each text is its only label.

Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easyedit_mend_parallel.errors import RequestError
from easyedit_mend_parallel.forward.batch import Batch, batch_of
from easyedit_mend_parallel.forward.tokenizing import Tokenized, ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_text_batch(model: PreTrainedModel, tokenizer: Any, texts: Sequence[str]) -> Batch:
    """A batch of plain texts. The only label of each text is its last token.

    An encoder-decoder model reads a text's first half and predicts the second. Texts of fewer than
    two tokens are left out. Raises RequestError if there is no other text.
    """
    return batch_of_ids(model, text_ids(tokenizer, texts), tokenizer)


def text_ids(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of each text that has two or more. Raises RequestError if no text has."""
    found = [ids for text in texts if len(ids := ids_of(tokenizer, text)) > 1]
    if not found:
        raise RequestError("no unrelated text has two tokens: give longer texts")
    return found


@dataclass(frozen=True)
class PadRight:
    """Replaces the tokenizer in `batch_of` if there are only token ids."""

    padding_side: str = "right"
    pad_token_id: int = 0
    eos_token_id: int = 0
    all_special_ids: tuple[int, ...] = ()


def batch_of_ids(
    model: PreTrainedModel, ids: Sequence[tuple[int, ...]], tokenizer: Any = None
) -> Batch:
    """`make_text_batch` of texts with these token ids, padded as `tokenizer` does (or right)."""
    padding = PadRight() if tokenizer is None else tokenizer
    if model.config.is_encoder_decoder:
        halves = [Tokenized(text[: len(text) // 2], text[len(text) // 2 :]) for text in ids]
        return batch_of(model, padding, halves)
    return batch_of(model, padding, [Tokenized(text, text[-1:]) for text in ids])
