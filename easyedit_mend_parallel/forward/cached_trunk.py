"""A trunk with a cache: the hidden states of each text are computed once and kept.

A batch resumes from them at the lowest target's block. The first batch is checked for the same
predictions with and without resuming. Knows no model by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import NoTrunkError, TargetError, TrunkError
from easyedit_mend_parallel.files.interrupts import interrupts_pass
from easyedit_mend_parallel.forward.batch import IGNORED, Batch
from easyedit_mend_parallel.forward.calling import called_with
from easyedit_mend_parallel.forward.capture import evaluating
from easyedit_mend_parallel.forward.hidden_state_cache import HiddenStateCache
from easyedit_mend_parallel.forward.label_logits import LabelLogits
from easyedit_mend_parallel.forward.trunk import (
    ForwardStopped,
    Resumed,
    Trunk,
    is_above,
    nearly_equal,
)
from easyedit_mend_parallel.weights.engines import gathers, reshard
from easyedit_mend_parallel.weights.gate import Gate
from easyedit_mend_parallel.weights.offload import RAM, find_holder, kept_weight
from easyedit_mend_parallel.weights.ranks import Ranks
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.whole import local_part, whole_tensor

MEMORY_LIMIT = 1 << 30
"""Default memory for hidden states, in bytes."""

TOKENS_AT_ONCE = 4096
"""Maximum number of tokens, with padding, in one call of the trunk."""

CHECKSUM_BYTES = 1 << 24
"""Number of bytes of a weight that are read at once for its checksum."""


Text = tuple[tuple[int, ...], int]
"""Token ids, and how many of them are the prompt before a target text (0: there is none)."""


class CachedTrunk(Trunk):
    """The part of `model` below the lowest of `targets`, and a cache of its outputs.

    Does not reference the model. States are cached in memory up to `memory_limit` bytes, then on
    disk up to `disk_limit`: in `folder`, where later runs find them, or in a temporary file. A
    cache in a folder has a checksum of the trunk's weights and of `tokenizer`.

    Raises NoTrunkError for targets that are not in one list of blocks, and for an encoder-decoder
    model; TrunkError for a folder with states of another model.

    Several processes that hold one model resume batches of their own, but all make the same calls:
    where one of them has a text without states, the others pass the trunk, too.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        tokenizer: Any = None,
        *,
        memory_limit: int = MEMORY_LIMIT,
        disk_limit: int = 0,
        folder: Path | None = None,
    ) -> None:
        super().__init__(model, targets)
        self.kept = HiddenStateCache(
            checksum(model, f"{self.blocks}.", self.lowest, tokenizer) if folder else "",
            memory_limit=memory_limit,
            disk_limit=disk_limit,
            folder=folder,
        )
        self._ranks = Ranks.of(model)
        self._versions = self._seen_versions(model)
        self._causal: bool | None = None
        self._checked = False

    def resume(self, model: nn.Module, batch: Batch) -> Resumed:
        """`batch` with the hidden states that enter the lowest target's block.

        New texts pass through the trunk here, in one call. Raises TrunkError if a weight of the
        trunk has changed since the states were cached, and NoTrunkError if the resumed model
        predicts something else than the whole model.
        """
        gate = Gate.of(model)
        if gate is not None and not gate.is_silent:
            raise NoTrunkError(
                "the model has scoped edits, whose scopes read blocks that a resumed forward pass "
                "skips: run it whole (trunk_memory: 0)"
            )
        if self._seen_versions(model) != self._versions:
            raise TrunkError(
                f"weights below {self.blocks}.{self.lowest} have changed since their hidden "
                "states were cached: make a new CachedTrunk, or edit no weight below the lowest "
                "target"
            )
        texts = _texts(batch)
        found = self._states(model, texts)
        mask = batch.inputs["attention_mask"].bool().cpu()
        states = found[0].new_zeros(*mask.shape, found[0].shape[-1])
        states[mask] = torch.cat(found)
        resumed = self.resumed(model, batch, states)
        if not self._checked:
            self._refuse_other_predictions(model, batch, resumed)
            self._checked = True
        return resumed

    def keep(self, model: nn.Module, texts: Sequence[Text]) -> Iterator[int]:
        """Fill the cache with the states of `texts`. Yields the number of finished texts.

        Texts of similar length share a call, with up to `TOKENS_AT_ONCE` tokens, so that offloaded
        blocks are loaded less often.
        """
        waiting = sorted(texts, key=lambda text: len(text[0]))
        done = 0
        while done < len(waiting):
            end = done + 1
            while end < len(waiting) and (end + 1 - done) * len(waiting[end][0]) <= TOKENS_AT_ONCE:
                end += 1
            self._states(model, waiting[done:end])
            done = end
            yield done

    def _states(self, model: nn.Module, texts: Sequence[Text]) -> list[Tensor]:
        """The states (T, width) of each text."""
        if self._causal is None:
            ids, _ = max(texts, key=lambda text: len(text[0]))
            whole, beginning = self._computed(model, [ids, ids[: max(1, len(ids) // 2)]])
            self._causal = nearly_equal(whole[: len(beginning)], beginning)
        found = {ids: self.kept.get(ids) for ids, _ in texts}
        missing = [(ids, prompt) for ids, prompt in dict(texts).items() if found[ids] is None]
        if self._ranks.any(bool(missing)):
            computed = self._computed(model, [ids for ids, _ in missing or texts[:1]])
            for (ids, prompt), states in zip(missing, computed[: len(missing)], strict=True):
                found[ids] = states
                self.kept.put(ids, states, beginning=prompt if self._causal else 0)
        return [states for ids, _ in texts for states in [found[ids]] if states is not None]

    @torch.no_grad()
    def _computed(self, model: nn.Module, texts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The states of texts, from a forward that ends where the lowest target's block begins.

        An engine that gathers weights has to see the end of the pass: the output layer then gets
        one token.
        """
        width = max(map(len, texts))
        padding = [[0] * (width - len(ids)) for ids in texts]
        padded = [[*ids, *rest] for ids, rest in zip(texts, padding, strict=True)]
        mask = [[1] * len(ids) + rest for ids, rest in zip(texts, padding, strict=True)]
        inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        whole = gathers(model, f"{self.blocks}.{self.lowest}")
        shape, one = inputs["input_ids"].shape, torch.zeros(1, dtype=torch.long)
        with (
            self.caught(model, stop=not whole) as caught,
            LabelLogits(shape, one, one).before_output_layer(model),
            evaluating(model),
            suppress(ForwardStopped),
            interrupts_pass(),
        ):
            model(**called_with(model, inputs))
        states = caught[0].cpu()
        return [row[: len(ids)] for row, ids in zip(states, texts, strict=True)]

    @torch.no_grad()
    def _refuse_other_predictions(self, model: nn.Module, batch: Batch, resumed: Resumed) -> None:
        sequence, position = batch.inputs["attention_mask"].cpu().nonzero(as_tuple=True)
        expected = batch.predictions(model, sequence, position)
        try:
            found = resumed.predictions(model, sequence, position)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, TargetError) as error:
            raise NoTrunkError(
                f"this model cannot be resumed at {self.blocks}.{self.lowest} ({error}). Its "
                "hidden states cannot be cached; set trunk_memory: 0"
            ) from error
        if not nearly_equal(expected, found):
            raise NoTrunkError(
                f"resumed at {self.blocks}.{self.lowest}, this model predicts something else than "
                "the whole model: its upper blocks need more than hidden states. Its hidden states "
                "cannot be cached; set trunk_memory: 0"
            )

    def _seen_versions(self, model: nn.Module) -> list[Any]:
        """Values that change with any weight of the trunk. Cheap; valid in this process only."""
        seen: list[Any] = []
        reshard(model)
        for name, parameter in model.named_parameters():
            if is_above(name, f"{self.blocks}.", self.lowest):
                continue
            if parameter.device.type != "meta":
                here = local_part(parameter)
                seen.append((name, here.data_ptr(), here._version))
                continue
            holder = find_holder(model, name)
            if holder is not None and holder.kept == RAM:
                seen.append((name, holder.in_memory.data_ptr(), holder.in_memory._version))
            elif holder is not None:  # in a file, or in an overlay of an edit
                edited = holder.key in getattr(holder.container, "state_dict", ())
                seen.append((name, holder.kept, edited))
        return seen


def checksum(model: nn.Module, blocks: str, lowest: int, tokenizer: Any) -> str:
    """sha256 of every weight outside the blocks from `lowest` on, and of the tokenizer.

    Reads each weight once, part by part, from where it is stored. A weight that is split between
    processes is gathered for that: every process has to call this.
    """
    digest = hashlib.sha256()
    for name, _ in sorted(model.named_parameters()):
        if is_above(name, blocks, lowest):
            continue
        weight = kept_weight(model, name)
        if weight is None:
            continue
        weight = whole_tensor(weight)
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        numbers = weight.reshape(-1)
        step = CHECKSUM_BYTES // max(1, numbers.element_size())
        for start in range(0, numbers.numel(), step):
            part = numbers[start : start + step].cpu().contiguous()
            digest.update(part.view(torch.uint8).numpy().data)
    if tokenizer is not None:
        vocabulary = sorted(tokenizer.get_vocab().items())
        digest.update(repr((vocabulary, sorted(tokenizer.all_special_ids))).encode())
    return digest.hexdigest()


def _texts(batch: Batch) -> list[Text]:
    """The text of each sequence, without padding."""
    if "input_ids" not in batch.inputs or "decoder_input_ids" in batch.inputs:
        raise TrunkError("only a decoder-only batch of token ids can be resumed")
    texts = []
    ids, mask = batch.inputs["input_ids"].cpu(), batch.inputs["attention_mask"].cpu().bool()
    for row, live, labels in zip(ids, mask, batch.labels, strict=True):
        labelled = (labels[live] != IGNORED).nonzero().flatten()
        prompt = int(labelled[0]) + 1 if len(labelled) else 0
        texts.append((tuple(row[live].tolist()), prompt))
    return texts
