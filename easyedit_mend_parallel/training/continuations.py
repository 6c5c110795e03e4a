"""Samples how the base model continues after an answer, once, before the first step.

An edit must change the answer, but not the text after it. The base model, given prompt and answer,
shows that text. Knows texts and models, and nothing of losses.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import torch
from transformers import GenerationConfig

from easyedit_mend_parallel.errors import HparamsError, TrainingError
from easyedit_mend_parallel.evaluation.data import Example
from easyedit_mend_parallel.files import written_whole
from easyedit_mend_parallel.forward.cached_trunk import checksum
from easyedit_mend_parallel.forward.texts import Text, Texts
from easyedit_mend_parallel.weights.placement import input_device

log = logging.getLogger(__name__)

TOKENS = 10
"""How many tokens a continuation has, at most; it ends where the model ends its text."""
AT_ONCE = 64
"""How many continuations are generated together."""
FILE = "continuations.json"
"""The file that keeps them for the next run."""


def to_continue(example: Example) -> list[tuple[Text, bool]]:
    """The texts of an example after which continuations are drawn, and whether greedily: the
    prompt with the answer, greedily, and one rephrase with it, sampled."""
    request = example.request
    found = [(Text(request.prompt, request.target_text), True)]
    found += [(Text(p, request.target_after(p)), False) for p in example.rephrases[:1]]
    return found


class Continuations:
    """{text: the same text with its continuation}, drawn from the model as it is.

    With a `folder`, continuations found there are used and new ones are kept there. They carry a
    checksum of all weights and of the tokenizer; those of another model are sampled again.

    Raises HparamsError for an encoder-decoder model, and where the tokenizer ends each text with a
    special token, after which nothing follows.
    """

    def __init__(self, texts: Texts, *, seed: int, folder: Path | None = None) -> None:
        if texts.model.config.is_encoder_decoder:
            raise HparamsError(
                "continuation_positions is for decoder-only models: an encoder-decoder model ends "
                "each answer by itself. Set it to 0"
            )
        self._texts, self._seed = texts, seed
        self._path = None if folder is None else folder / FILE
        self._identity = "" if folder is None else _identity(texts, seed)
        self._kept = self._read()
        self.of: dict[Text, Text] = {}

    def draw(self, wanted: Mapping[Text, bool]) -> Iterator[int]:
        """Draw what is missing of `wanted`, texts and whether greedily; yields how many are done.

        Texts whose answer ends with a special token, as in chat form, have no continuation.

        Those of like length go together. A continuation that would make its text longer than
        `max_length` is shortened.
        """
        wanted = {text: wanted[text] for text in wanted if not self._ends_itself(text)}
        missing = [text for text in wanted if _key(text, wanted[text]) not in self._kept]
        missing.sort(key=lambda text: (wanted[text], len(self._ids(text))))
        done = 0
        while done < len(missing):
            greedy = wanted[missing[done]]
            part = [text for text in missing[done : done + AT_ONCE] if wanted[text] == greedy]
            for text, found in zip(part, self._generated(part, greedy), strict=True):
                self._kept[_key(text, greedy)] = found
            done += len(part)
            yield done
        for text, greedy in wanted.items():
            room = self._texts.max_length
            found = self._kept[_key(text, greedy)]
            if room is not None:
                found = found[: max(0, room - len(self._ids(text)))]
            self.of[text] = Text(text.prompt, text.target, tuple(found))
        self._save()

    def _ends_itself(self, text: Text) -> bool:
        """Whether the answer says where it ends (in chat form), so that nothing is to follow."""
        bare = self._texts.tokenizer(text.target, add_special_tokens=False)["input_ids"]
        return bare[-1] in self._texts.tokenizer.all_special_ids

    def _ids(self, text: Text) -> tuple[int, ...]:
        ids = self._texts.tokenized(text).ids
        if ids[-1] in self._texts.tokenizer.all_special_ids:
            raise HparamsError(
                f"this tokenizer ends {text.prompt + text.target!r} with a special token, so that "
                "nothing follows: set continuation_positions to 0"
            )
        return ids

    @torch.no_grad()
    def _generated(self, texts: Sequence[Text], greedy: bool) -> list[list[int]]:
        """The ids that follow each text, without the token that ends it."""
        model = self._texts.model
        rows = [self._ids(text) for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        ends = _as_list(model.generation_config.eos_token_id if model.generation_config else None)
        device = input_device(model)
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            made = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=GenerationConfig(
                    max_new_tokens=TOKENS,
                    do_sample=not greedy,
                    top_k=0 if not greedy else None,
                    eos_token_id=ends or None,
                    pad_token_id=ends[0] if ends else 0,
                ),
            )
        found = [row.tolist() for row in made[:, width:].cpu()]
        return [list(takewhile(lambda token: token not in ends, row)) for row in found]

    def _read(self) -> dict[str, list[int]]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            kept = json.loads(self._path.read_text("utf-8"))
            if kept["identity"] == self._identity:
                found: dict[str, list[int]] = kept["continuations"]
                return found
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{self._path} is no file of continuations ({error}): delete it"
            ) from error
        log.warning("%s is of another model, tokenizer or seed: drawn anew", self._path)
        return {}

    def _save(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self._path) as temporary:
            temporary.write_text(
                json.dumps({"identity": self._identity, "continuations": self._kept}), "utf-8"
            )


def _identity(texts: Texts, seed: int) -> str:
    """What continuations depend on: every weight, the tokenizer, how they were drawn."""
    return f"{checksum(texts.model, chr(0), 0, texts.tokenizer)} {seed} {TOKENS}"


def _key(text: Text, greedy: bool) -> str:
    return json.dumps([text.prompt, text.target, greedy])


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
