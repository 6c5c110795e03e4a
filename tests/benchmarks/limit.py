"""The limit of the method: what no edit by MEND can do without, and nothing else.

*narrow*: one forward, one backward to the lowest target without weight gradients, and one pass over
the targets that adds to each. *whole*: the networks' pass and a backup, too. Neither edits
anything that makes sense, takes care of an error, or can be undone; they are what edits are
measured against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from easyedit_mend_parallel.method.hypernetwork import Hypernetwork


class Limit:
    """Both limits on one model; `ids` (1, T) are a prompt with its target's tokens at the end."""

    def __init__(
        self, model: Any, names: list[str], ids: Tensor, n_labels: int, network: Hypernetwork
    ) -> None:
        self.model, self.ids, self.n_labels = model, ids, n_labels
        self.layers = [model.get_submodule(name.removesuffix(".weight")) for name in names]
        self.network = network
        self.shapes = [(layer.in_features, layer.out_features) for layer in self.layers]

    def narrow(self) -> None:
        for layer, (x, delta) in zip(self.layers, self.rows(), strict=True):
            layer.weight.data.addmm_(delta.T, x, alpha=1e-9)

    def whole(self) -> list[Tensor]:
        """Returns the backups, so that they are there at once as an edit's would be."""
        rows = self.rows()
        backups = []
        groups: dict[tuple[int, int], list[int]] = {}
        for number, shape in enumerate(self.shapes):
            groups.setdefault(shape, []).append(number)
        for shape, numbers in groups.items():
            x = torch.cat([rows[number][0] for number in numbers]).float()
            delta = torch.cat([rows[number][1] for number in numbers]).float()
            mode = torch.arange(len(numbers)).repeat_interleave(len(x) // len(numbers))
            transform = self.network.mend[str(shape)]
            keys, values = transform(x, delta, mode.to(x.device))
            for place, number in enumerate(numbers):
                mine = slice(place * len(x) // len(numbers), (place + 1) * len(x) // len(numbers))
                weight = self.layers[number].weight.data
                backups.append(weight.clone())
                change = values[mine].to(weight.dtype).T, keys[mine].to(weight.dtype)
                weight.addmm_(*change, alpha=1e-9)
        return backups

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Each target's inputs and the gradient at its output, (T, in) and (T, out)."""
        seen: list[tuple[Tensor, Tensor]] = []

        def see(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            output.requires_grad_()
            seen.append((inputs[0].detach()[0], output))

        handles = [layer.register_forward_hook(see) for layer in self.layers]
        try:
            with torch.enable_grad():
                output = self.model(
                    self.ids, use_cache=False, logits_to_keep=self.n_labels + 1
                ).logits
                loss = F.cross_entropy(output[0, :-1].float(), self.ids[0, -self.n_labels :])
                deltas = torch.autograd.grad(loss, [output for _, output in seen])
        finally:
            for handle in handles:
                handle.remove()
        return [(x, delta[0]) for (x, _), delta in zip(seen, deltas, strict=True)]
