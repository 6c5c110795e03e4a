"""Whether the rows that a layer sees are the tokens of a batch's sequences, one sequence after the
other, and whether a request in a batch is predicted as alone. Asks shapes, and where they do not
tell, the model; never its name.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from easyedit_mend_parallel.errors import TargetError
from easyedit_mend_parallel.forward.batch import IGNORED, Batch
from easyedit_mend_parallel.forward.trunk import Resumed, nearly_equal
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.uses import Use

_in_order: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
"""What was found by asking: whether a layer's rows are in order."""
_reads_masks: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models that were seen to predict the same with padding as without."""


def refuse_other_layout(
    model: nn.Module, targets: Sequence[Target], seen: Mapping[str, Sequence[Use]], batch: Batch
) -> None:
    """Raise TargetError where rows of a batch of several sequences cannot be told apart.

    `seen` {target name: each use of its weight} are those of a forward pass of `batch`. In order
    are inputs (B, T, in), and (B × T, in) where a forward pass of three sequences shows it, which
    each layer needs once. The rows of an expert say which tokens they are.
    """
    n_sequences = len(batch.labels)
    lengths = {value.shape[1] for value in batch.inputs.values() if batch.is_of_sequences(value)}
    lengths.add(batch.labels.shape[1])
    for target in targets:
        _refuse_unknown_rows(
            target, seen[target.name], {n_sequences * length for length in lengths}
        )
    if n_sequences == 1:
        return
    unknown = []
    for target in targets:
        for x in (use.x for use in seen[target.name] if use.tokens is None):
            if x.dim() > 2 and x.shape[0] == n_sequences != x.shape[1]:
                streams = x.shape[1] // batch.labels.shape[1]
                if x.shape[1] not in lengths and streams * batch.labels.shape[1] == x.shape[1]:
                    raise _mixed(target, f"sees {streams} rows for each token")
            elif x.dim() > 2 and x.shape[0] in lengths and x.shape[1] == n_sequences:
                if x.shape[0] != n_sequences:
                    raise _mixed(target, "takes tokens first and sequences second")
                unknown.append(target)
            elif x.shape[:-1].numel() % n_sequences:
                raise _mixed(target, f"sees {x.shape[:-1].numel()} rows, not those of each token")
            else:
                unknown.append(target)
    _ask(model, unknown, batch)


def _refuse_unknown_rows(target: Target, seen: Sequence[Use], tokens: set[int]) -> None:
    """Raise TargetError for a layer that sees rows of which nobody knows which tokens they are."""
    for use in seen:
        n = use.of or use.x.shape[:-1].numel()
        is_expert = target.expert is not None and use.tokens is None
        if is_expert or ((use.of or use.x.dim() == 2) and n not in tokens):
            raise TargetError(
                f"{target.name} sees {len(use.x)} rows, and the batch has {max(tokens)} tokens: "
                "which tokens these are cannot be followed. It is an expert whose router moves "
                "tokens in a way that this package does not know, or it reads no text. Take it out "
                "of inner_params, and name weights that every token passes, such as those of the "
                "attention or of a shared expert"
            )


def refuse_felt_padding(model: nn.Module, batch: Batch, losses: Tensor) -> None:
    """Raise TargetError where a request of a padded batch is not predicted as it is alone.

    `losses` (R,) are those of a forward pass of `batch`. The request with the most padding, in the
    encoder and in the decoder where a model has both, is run alone, which each model needs once.
    """
    mask = batch.inputs.get("attention_mask")
    if mask is None or "input_ids" not in batch.inputs or isinstance(batch, Resumed):
        return
    if len(mask) == 1:
        return
    if model in _reads_masks or getattr(model, "is_quantized", False):
        return  # what a quantized layer computes for a token depends on the others of its batch
    of_decoder = "decoder_input_ids" in batch.inputs
    prompts = mask.bool().cpu()
    answers = _answered(batch.labels) if of_decoder else prompts
    shortest = int((prompts.sum(1) + answers.sum(1)).argmin())
    of_prompt, of_answer = prompts[shortest], answers[shortest]
    request = int(batch.request[shortest])
    unpadded = bool(of_prompt.all()) and bool(of_answer.all())
    if unpadded or int((batch.request == request).sum()) != 1:
        return
    one = batch.taken(torch.tensor([shortest]), torch.zeros(1, dtype=torch.long))
    inputs = {}
    for name, value in one.inputs.items():
        real = of_answer if of_decoder and name.startswith("decoder") else of_prompt
        whole = one.is_of_sequences(value) and value.shape[1] == len(real)
        inputs[name] = value[:, real.to(value.device)] if whole else value
    labels = one.labels[:, of_answer]
    with torch.no_grad():
        alone = replace(one, inputs=inputs, labels=labels).losses_on(model)
    precision = next(model.parameters()).dtype
    if not nearly_equal(losses[request : request + 1].to(precision), alone.to(precision)):
        raise TargetError(
            f"{type(model).__name__} predicts a request in a padded batch otherwise than alone "
            f"(loss {float(losses[request]):.4g}, alone {float(alone):.4g}): it does not leave out "
            "padding, or its tokens depend on each other. Nothing was changed. Edit the requests "
            "one after the other, each in an edit of its own, with `sequence: add`"
        )
    _reads_masks.add(model)


@torch.no_grad()
def ask_beforehand(model: nn.Module, targets: Sequence[Target], batch: Batch) -> None:
    """Ask the model now, with `batch`, all that `refuse_felt_padding` and `refuse_other_layout` may
    ask of a later batch. `batch` has two sequences, of different lengths.

    For processes that hold one model together and give it batches of their own: whether a batch
    makes the model run once more depends on its texts. All of them call this with the same batch.
    Raises TargetError as `refuse_felt_padding` does.
    """
    refuse_felt_padding(model, batch, batch.losses_on(model))
    _look(model, [target for target in targets if target.expert is None], batch)


def _answered(labels: Tensor) -> Tensor:
    """(B, T): true up to the last label of each sequence."""
    return (labels.cpu() != IGNORED).flip(1).cumsum(1).flip(1) > 0


def _ask(model: nn.Module, targets: Sequence[Target], batch: Batch) -> None:
    """Let the model read one sequence at two places of a batch: its rows have to be the same."""
    _look(model, targets, batch)
    for target in targets:
        if not _in_order.get(target.layer(model), True):
            raise _mixed(target, "does not see the tokens of one sequence after those of another")


def _look(model: nn.Module, targets: Sequence[Target], batch: Batch) -> None:
    """Note for each target's layer whether its rows are in order, if that is not known."""
    new = {target.name: target for target in targets if target.layer(model) not in _in_order}
    ids = batch.inputs.get("input_ids")
    if new and ids is not None:  # a batch that starts from hidden states was checked whole
        seen: dict[str, Tensor] = {}
        others = [n for n in range(1, len(ids)) if not torch.equal(ids[n], ids[0])]
        chosen = torch.tensor([0, *(others or [1])[:1], 0])
        with torch.no_grad(), ExitStack() as stack:
            for name, target in new.items():

                def keep(_layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    seen[name] = inputs[0].detach().flatten(0, -2)

                layer = target.layer(model)
                stack.callback(layer.register_forward_pre_hook(keep).remove)
            batch.taken(chosen, torch.arange(3)).call(model)
        for name, target in new.items():
            _in_order[target.layer(model)] = name in seen and _same_ends(seen[name])


def _same_ends(rows: Tensor) -> bool:
    """Whether the first third of `rows` (n, in) is the last."""
    n = len(rows) // 3
    return len(rows) == 3 * n and nearly_equal(rows[:n], rows[2 * n :])


def _mixed(target: Target, how: str) -> TargetError:
    return TargetError(
        f"the layer of {target.name} {how}, so one request of a batch would get the rows of "
        "another. Nothing was changed. Edit the requests one after the other, each in an edit of "
        "its own, with `sequence: add`"
    )
