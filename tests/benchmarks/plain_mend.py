"""MEND on one device in plain autograd: what somebody who knows the method writes in an afternoon.

No placements, no checks, no exact transaction: hooks, one network call for each target, a clone of
each target's weight as its backup. Stands beside the package so that it is not compared with a
straw man.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from easyedit_mend_parallel.method.hypernetwork import Hypernetwork


class PlainMend:
    def __init__(
        self, model: Any, tokenizer: Any, names: Sequence[str], network: Hypernetwork
    ) -> None:
        self.model, self.tokenizer, self.network = model, tokenizer, network
        self.layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}
        model.requires_grad_(False)

    def edit(self, requests: Sequence[Mapping[str, str]]) -> Callable[[], None]:
        """Edits the model; returns what takes the edit back."""
        rows = self._rows(requests)
        backups: dict[str, Tensor] = {}
        modes: dict[tuple[int, int], int] = {}
        with torch.no_grad():
            for number, (name, layer) in enumerate(self.layers.items()):
                shape = (layer.in_features, layer.out_features)
                mode = torch.tensor(modes.setdefault(shape, 0))
                modes[shape] += 1
                x, delta = rows[name]
                live = (x != 0).any(-1) & (delta != 0).any(-1)  # MEND skips the others
                x, delta = x[live], delta[live]
                keys, values = self.network.mend[str(shape)](x.float(), delta.float(), mode)
                weight = layer.weight.data
                backups[name] = weight.clone()
                update = (self.network.edit_lrs[number] * values).T @ keys
                weight += update.to(weight.dtype)

        def restore() -> None:
            for name, layer in self.layers.items():
                layer.weight.data.copy_(backups[name])

        return restore

    def _rows(self, requests: Sequence[Mapping[str, str]]) -> dict[str, tuple[Tensor, Tensor]]:
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def watch(name: str) -> Any:
            def see(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
                output.requires_grad_()
                seen[name] = inputs[0].detach(), output

            return see

        texts = [f"{request['prompt']} {request['target_new']}" for request in requests]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        targets = self.tokenizer([request["target_new"] for request in requests])["input_ids"]
        length = len(targets[0])
        handles = [layer.register_forward_hook(watch(name)) for name, layer in self.layers.items()]
        try:
            with torch.enable_grad():
                logits = self.model(**inputs, use_cache=False).logits[:, -length - 1 : -1]
                loss = F.cross_entropy(
                    logits.flatten(0, 1).float(), torch.tensor(targets).flatten()
                )
                outputs = [output for _, output in seen.values()]
                deltas = torch.autograd.grad(loss * len(requests), outputs)
        finally:
            for handle in handles:
                handle.remove()
        return {
            name: (x.flatten(0, 1), delta.flatten(0, 1))
            for (name, (x, _)), delta in zip(seen.items(), deltas, strict=True)
        }
