"""Texts made into token ids, and which of them are the answer: the tail of prompt and answer as
one text. Knows tokenizers, and nothing of batches.
"""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easyedit_mend_parallel.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

AUTO, ALWAYS, NEVER, EASYEDIT = "auto", "always", "never", "easyedit"
TARGET_SPACE = (AUTO, ALWAYS, NEVER, EASYEDIT)
"""What stands between a prompt and its target: see `target_after`."""
OPENING, QUOTES = "([{<“‘«„", "\"'`"
"""Characters after which no space is put; a quotation mark is an opening one after a space."""
WITHOUT_SPACES = ("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "JAVANESE ", "BALINESE ")
"""Further scripts without spaces between words, by the beginning of their characters' names."""


@dataclass(frozen=True)
class Tokenized:
    """A text as token ids: `ids` of the prompt and its target (of an encoder-decoder model, of the
    prompt alone), and the target's as `labels`; without labels nothing is to be predicted.

    The last `n_after` of the ids follow the target and are no labels."""

    ids: tuple[int, ...]
    labels: tuple[int, ...] = ()
    n_after: int = 0


def target_after(prompt: str, target: str, space: str = AUTO) -> str:
    """`target` as it follows `prompt`: with a space before it, or as it is.

    `always` and `easyedit` put a space before a target that does not begin with one, `never` puts
    none. `auto` puts one, as between two English words, but not where the target begins or the
    prompt ends with white space, and where the prompt ends with an opening bracket or quotation
    mark, or in a script that has no spaces (Chinese, Japanese, Thai and others).
    """
    if space == NEVER or target.startswith(" "):
        return target
    if space == AUTO and (target[:1].isspace() or _needs_no_space(prompt)):
        return target
    return " " + target


def _needs_no_space(prompt: str) -> bool:
    if not prompt or prompt[-1].isspace() or prompt[-1] in OPENING:
        return True
    last = prompt[-1]
    if last in QUOTES:
        return not prompt[:-1] or prompt[-2].isspace() or prompt[-2] in OPENING
    name = unicodedata.name(last, "")
    wide = unicodedata.east_asian_width(last) in ("W", "F") and not name.startswith("HANGUL")
    return wide or name.startswith(WITHOUT_SPACES)


def tokenized(
    model: PreTrainedModel, tokenizer: Any, prompt: str, target: str = "", space: str = AUTO
) -> Tokenized:
    """`prompt` with `target` right after it (or none; `target_after` says with what between them).

    The labels are the ids of the target in the text of both, and before them the special tokens
    that the tokenizer puts before every text, as EasyEdit has them (with `space` `never`, which
    EasyEdit does not know, they are left out). With `space` `easyedit` they
    are the target's when it is tokenized by itself, as EasyEdit makes them: with some tokenizers
    those are not the ids that stand in the text. So they are for an encoder-decoder model, which
    reads the prompt and predicts the target.

    Raises RequestError for a target that adds no token, or is as long as the sequence,
    and where one token is made of the end of the prompt and the beginning of the target.
    """
    alone = _target_ids(tokenizer, prompt, target) if target else ()
    if model.config.is_encoder_decoder:
        return Tokenized(ids_of(tokenizer, prompt), alone)
    ids = ids_of(tokenizer, prompt + target)
    labels = alone
    if target and space != EASYEDIT:
        labels = _in_text(tokenizer, ids, prompt, target, () if space == NEVER else alone)
    if len(labels) >= len(ids):
        raise RequestError(
            f"the prompt {prompt!r} has no token before its target {target.strip()!r}: "
            "nothing would predict the target"
        )
    return Tokenized(ids, labels)


def say_other_labels(tokenizer: Any, prompt: str, target: str, found: Tokenized) -> None:
    """Log a warning where the labels of `found` (`easyedit`) are not the tokens in its text."""
    try:
        in_text = _in_text(tokenizer, found.ids, prompt, target, found.labels)
    except RequestError:
        return
    if in_text != found.labels:
        log.warning(
            "the labels of %r are %s, as EasyEdit makes them, and after %r this tokenizer writes "
            "%s: the edit teaches tokens that do not stand there. Set `target_space: auto`",
            target,
            tokenizer.convert_ids_to_tokens(list(found.labels)),
            prompt,
            tokenizer.convert_ids_to_tokens(list(in_text)),
        )


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The token ids of a text, with the special tokens that the tokenizer puts around it."""
    return tuple(tokenizer(text)["input_ids"])


def _in_text(
    tokenizer: Any, ids: tuple[int, ...], prompt: str, target: str, alone: tuple[int, ...]
) -> tuple[int, ...]:
    """The target's labels in `ids`, the text of both, and before them the special tokens that it
    has `alone`, if any."""
    special = set(tokenizer.all_special_ids)
    first = next((n for n, token in enumerate(alone) if token not in special), 0)
    return alone[:first] + ids[_beginning(tokenizer, ids, prompt, target) :]


def _beginning(tokenizer: Any, ids: tuple[int, ...], prompt: str, target: str) -> int:
    """Where in `ids`, those of prompt and target, the target begins.

    Spaces at the end of the prompt may be part of the target's first token.
    """
    for text in (prompt, prompt.rstrip(" ")):
        bare = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        whole = ids_of(tokenizer, text)
        before = next(
            (n for n in range(len(whole)) if bare and whole[n : n + len(bare)] == bare), len(whole)
        )
        beginning = whole[: before + len(bare)] if bare else whole[:1]
        if ids[: len(beginning)] == beginning and len(beginning) < len(ids):
            return len(beginning)
    raise RequestError(
        f"this tokenizer makes one token of the end of the prompt {prompt[-20:]!r} and the "
        f"beginning of the target {target!r}, so no label is the target's alone: end the prompt "
        "where a word ends, begin the target with a space, or set `target_space: easyedit`, which "
        "tokenizes the target by itself"
    )


def _target_ids(tokenizer: Any, prompt: str, target: str) -> tuple[int, ...]:
    ids = ids_of(tokenizer, target)
    if not set(ids) - set(tokenizer.all_special_ids):
        raise RequestError(
            f"the target {target.strip()!r} of {prompt!r} is nothing but special tokens to this "
            f"tokenizer (ids {list(ids)}): the edit would teach it no answer"
        )
    return ids
