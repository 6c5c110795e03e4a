"""Puts requests into chat form: the prompt as a user's turn, the answer as the assistant's.

Knows the tokenizer's chat template, and no model by name.
"""

from __future__ import annotations

from typing import Any

from easyedit_mend_parallel.errors import RequestError
from easyedit_mend_parallel.forward.requests import Request
from easyedit_mend_parallel.forward.tokenizing import NEVER

PLACEHOLDER = "A"
"""An answer with which the end of a turn is found."""


def in_chat(tokenizer: Any, prompt: str) -> str:
    """`prompt` as a user's turn in the tokenizer's chat template, up to where the answer begins.

    A beginning-of-text token that the tokenizer itself puts before every text is left out.
    Raises RequestError for a tokenizer without a chat template.
    """
    return _rendered(tokenizer, [_turn("user", prompt)], add_generation_prompt=True)


def end_of_turn(tokenizer: Any) -> str:
    """The end of an assistant's turn in the template, up to its first special token (`<|im_end|>`,
    `</s>`); empty if the template has no special token there.

    Raises RequestError for a tokenizer without a chat template.
    """
    turns = [_turn("user", PLACEHOLDER), _turn("assistant", PLACEHOLDER)]
    whole = _rendered(tokenizer, turns, add_generation_prompt=False)
    after = whole[whole.rindex(PLACEHOLDER) + len(PLACEHOLDER) :]
    # Not only those of `all_special_tokens`: a turn can end with another added token.
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = [after.index(token) + len(token) for token in special if token in after]
    return after[: min(ends)] if ends else ""


def chat_request(tokenizer: Any, request: Request) -> Request:
    """The request as the template writes it: its labels are the answer and the end of the turn,
    and no token that the template puts before the answer.

    Raises RequestError for a tokenizer without a chat template.
    """
    return Request(
        in_chat(tokenizer, request.prompt),
        request.target_new.strip() + end_of_turn(tokenizer),
        request.other,
        NEVER,
    )


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _rendered(tokenizer: Any, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise RequestError(
            "this tokenizer has no chat template, so nothing can be put in chat form: remove chat, "
            "or set tokenizer.chat_template"
        )
    text: str = tokenizer.apply_chat_template(
        turns, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return text[len(bos) :]
    return text
