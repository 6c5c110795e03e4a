"""MEND's hypernetwork: token rows of a gradient in, token rows of an update out.

Follows Mitchell et al. 2022, sections 3.1-3.2, with EasyEdit's names for parameters and
statistics (`easyeditor/trainer/algs/MEND.py`), so that archives go both ways. Knows nothing of
models: it sees widths and rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from easyedit_mend_parallel.errors import HparamsError
from easyedit_mend_parallel.forward.capture import TokenRows
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

STATISTICS = ("u_mean", "v_mean", "u_std", "v_std", "u_s", "v_s", "k")
EPSILON = 1e-7
"""Added to standard deviations before dividing by them, as EasyEdit does."""


@dataclass(frozen=True)
class HypernetworkConfig:
    """The network's options, under EasyEdit's names. Raises HparamsError if they contradict.

    `rank` is the maximum rank of each of the `n_hidden` + 1 layers. `combine`: one network
    transforms x and δ together; otherwise each has its own network. Of these two, `one_sided`
    keeps only that of the narrower side, `x_only` only that of x, `delta_only` only that of δ.
    `shared`: targets of the same shape share a network, with a learned shift and scale for each.
    `norm`: rows are normalised by running statistics. `edit_lr` is the initial value of each
    target's learned rate, and `lr_scale` multiplies all of them.
    """

    rank: int
    n_hidden: int = 1
    init: str = "id"
    norm: bool = True
    combine: bool = True
    one_sided: bool = False
    x_only: bool = False
    delta_only: bool = False
    shared: bool = True
    mlp_class: str = "IDMLP"
    edit_lr: float = 1e-4
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.mlp_class != "IDMLP":
            raise HparamsError(
                f"mlp_class is {self.mlp_class!r}, which EasyEdit itself cannot build (it stops "
                "with a TypeError): use IDMLP"
            )
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise HparamsError(
                f"rank is {self.rank!r}; it must be a positive number (EasyEdit itself stops "
                "with a TypeError on rank: null)"
            )
        if self.init not in ("id", "xavier"):
            raise HparamsError(f"init is {self.init!r}; it has to be 'id' or 'xavier'")
        if self.combine and (self.one_sided or self.x_only or self.delta_only):
            raise HparamsError(
                "combine: true transforms x and delta together, so one_sided, x_only and "
                "delta_only have to be false"
            )


class LowRankLayer(nn.Module):
    """x ↦ max(0, u v x + bias), plus x itself if `init` is "id" (EasyEdit's `LRLinear`).

    With `n_modes`, the sum is scaled and shifted by learned values of each row's mode before it is
    clamped. EasyEdit clamps in the last layer too, and archives were trained in this way.
    """

    def __init__(self, width: int, rank: int, init: str, n_modes: int | None) -> None:
        super().__init__()
        rank = min(rank, width)
        self.residual = init == "id"
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width))
        if init == "xavier":
            nn.init.xavier_uniform_(self.u, gain=nn.init.calculate_gain("relu"))
            nn.init.xavier_uniform_(self.v)
        self.bias = nn.Parameter(torch.zeros(width))
        if n_modes is not None:
            self.mode_shift = nn.Embedding(n_modes, width)
            self.mode_scale = nn.Embedding(n_modes, width)
            nn.init.zeros_(self.mode_shift.weight)
            nn.init.ones_(self.mode_scale.weight)

    def forward(self, x: Tensor, mode: Tensor | None) -> Tensor:
        y = F.linear(x @ self.v.T, self.u, self.bias)
        if mode is not None:
            y = torch.addcmul(self.mode_shift(mode), y, self.mode_scale(mode))
        # clamp(min=0), with the gradient at 0 that it had before torch 2.14: 1. The identity that
        # training starts from has zeros here, and would get no gradient at all. NaN stays NaN.
        y = torch.where(y < 0, 0.0, y)
        return y + x if self.residual else y


class LowRankMLP(nn.Module):
    """`n_hidden` + 1 low-rank layers of one width (EasyEdit's `IDMLP`)."""

    def __init__(self, width: int, config: HypernetworkConfig, n_modes: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            LowRankLayer(width, config.rank, config.init, n_modes)
            for _ in range(config.n_hidden + 1)
        )

    def forward(self, x: Tensor, mode: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mode)
        return x


class GradientTransform(nn.Module):
    """The network of one shape: normalises and transforms rows (x, δ) (sections 3.1-3.2).

    `u` and `v` in the statistics are EasyEdit's names of x and δ: running mean, sum of squared
    deviations (`_s`), standard deviation, and `k`, the number of observed rows. They are NaN until
    the first rows are observed.
    """

    u_mean: Tensor
    u_s: Tensor
    u_std: Tensor
    v_mean: Tensor
    v_s: Tensor
    v_std: Tensor
    k: Tensor

    def __init__(
        self, shape: tuple[int, int], config: HypernetworkConfig, n_modes: int | None
    ) -> None:
        super().__init__()
        self.config = config
        self.widths = shape
        x_width, delta_width = shape
        for name in STATISTICS:
            width = 1 if name == "k" else x_width if name.startswith("u") else delta_width
            self.register_buffer(name, torch.full((width,), float("nan")))
        if config.combine:
            self.mlp = LowRankMLP(x_width + delta_width, config, n_modes)
            return
        # If several of these options are set, EasyEdit uses the first one.
        if config.one_sided:
            of_x, of_delta = x_width <= delta_width, x_width > delta_width
        elif config.x_only:
            of_x, of_delta = True, False
        else:
            of_x, of_delta = not config.delta_only, True
        if of_x:
            self.mlp1 = LowRankMLP(x_width, config, n_modes)
        if of_delta:
            self.mlp2 = LowRankMLP(delta_width, config, n_modes)

    def forward(self, x: Tensor, delta: Tensor, mode: Tensor | None) -> tuple[Tensor, Tensor]:
        """From x (n, in) and delta (n, out), fp32, and each row's mode (n,) to the rows of an
        update, (n, in) and (n, out), fp32."""
        if self.config.norm:
            x = (x - self.u_mean) / (self.u_std + EPSILON)
            delta = (delta - self.v_mean) / (self.v_std + EPSILON)
        if self.config.combine:
            keys, values = torch.split(
                self.mlp(torch.cat((x, delta), -1), mode), list(self.widths), -1
            )
            return keys, values
        keys = self.mlp1(x, mode) if hasattr(self, "mlp1") else x
        values = self.mlp2(delta, mode) if hasattr(self, "mlp2") else delta
        return keys, values

    @torch.no_grad()
    def sample(self, x: Tensor, delta: Tensor, live: Tensor) -> Tensor:
        """One vector for the statistics: the number of live rows, and mean and sum of squared
        deviations of their x and δ. Does not wait for a device."""
        count = live.sum().to(self.k.dtype)
        parts = [count.reshape(1)]
        for rows in (x, delta):
            mean = torch.where(live.unsqueeze(-1), rows, 0.0).sum(0) / count.clamp(min=1)
            centred = torch.where(live.unsqueeze(-1), rows - mean, 0.0)
            parts += [mean, (centred**2).sum(0)]
        return torch.cat(parts)

    @torch.no_grad()
    def take(self, sample: Tensor) -> None:
        """Merge a `sample` into the statistics.

        The result equals Welford's update row by row, which EasyEdit uses (Chan et al. 1979,
        formula 2.1, for merging two samples).
        """
        x_width, delta_width = self.widths
        widths = [1, x_width, x_width, delta_width, delta_width]
        new, u_mean, u_s, v_mean, v_s = torch.split(sample, widths)
        seen = self.k.nan_to_num(0.0)
        total = seen + new
        for prefix, new_mean, new_deviations in (("u", u_mean, u_s), ("v", v_mean, v_s)):
            mean, deviations = getattr(self, prefix + "_mean"), getattr(self, prefix + "_s")
            mean.nan_to_num_(0.0)
            deviations.nan_to_num_(0.0)
            apart = torch.where(new > 0, new_mean - mean, 0.0)
            deviations += new_deviations + apart**2 * (seen * new / total.clamp(min=1))
            mean += apart * (new / total.clamp(min=1))
            getattr(self, prefix + "_std").copy_((deviations / (total - 1)).sqrt())
        self.k.copy_(total)


class Hypernetwork(nn.Module):
    """The whole network for a list of targets, and the learned rate of each.

    `state_dict()` has the keys of EasyEdit's archives: `edit_lrs` and `mend.<key>...`, where the
    key is `str((in, out))` when networks are shared, else the target's name with `#` for `.`.
    It is on one device, in fp32; only rows are sent to it and back.
    """

    def __init__(self, targets: Sequence[Target], config: HypernetworkConfig) -> None:
        super().__init__()
        self.targets = list(targets)
        self.config = config
        self.groups: dict[str, list[Target]] = {}
        for target in self.targets:
            self.groups.setdefault(self._key(target), []).append(target)
        self.edit_lrs = nn.Parameter(torch.full((len(self.targets),), float(config.edit_lr)))
        self.mend = nn.ModuleDict(
            {
                key: GradientTransform(
                    group[0].shape, config, len(group) if config.shared else None
                )
                for key, group in self.groups.items()
            }
        )

    def forward(self, rows: Mapping[str, TokenRows]) -> dict[str, LowRankUpdate]:
        """{target name: rows} to {target name: update}, each on the device its rows came from.

        Targets of one shape go through their network in one call. Writes nothing; differentiable
        in the network's parameters.
        """
        updates: dict[str, LowRankUpdate] = {}
        rates = dict(zip((target.name for target in self.targets), self.edit_lrs, strict=True))
        for key, group in self.groups.items():
            x, delta, live, mode = self._gathered(group, rows)
            keys, values = self.mend[key](x, delta, mode if self.config.shared else None)
            keys = torch.where(live.unsqueeze(-1), keys, 0.0)
            values = torch.where(live.unsqueeze(-1), values, 0.0)
            sizes = [len(rows[target.name].live) for target in group]
            for target, its_keys, its_values in zip(
                group, torch.split(keys, sizes), torch.split(values, sizes), strict=True
            ):
                home = rows[target.name]
                rate = rates[target.name] * self.config.lr_scale
                updates[target.name] = LowRankUpdate(
                    its_keys.to(home.delta.device),
                    (rate * its_values).to(home.delta.device),
                    home.request,
                )
        return {target.name: updates[target.name] for target in self.targets}

    def observe(
        self,
        rows: Mapping[str, TokenRows],
        gather: Callable[[Tensor], Iterable[Tensor]] = lambda own: [own],
    ) -> None:
        """Take every target's live rows into the statistics of its network.

        If several processes observe, `gather` takes this process's sample (see
        `GradientTransform.sample`) and returns those of all processes, in the same order on each.
        """
        for key, group in self.groups.items():
            x, delta, live, _ = self._gathered(group, rows)
            transform = self.mend[key]
            assert isinstance(transform, GradientTransform)
            for sample in gather(transform.sample(x, delta, live)):
                transform.take(sample)

    def _key(self, target: Target) -> str:
        return str(target.shape) if self.config.shared else target.name.replace(".", "#")

    def _gathered(
        self, group: Sequence[Target], rows: Mapping[str, TokenRows]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows of one group on the network's device, and each row's mode: its target."""
        device = self.edit_lrs.device
        parts = [rows[target.name] for target in group]
        x = torch.cat([part.x.to(device, torch.float32) for part in parts])
        delta = torch.cat([part.delta.to(device, torch.float32) for part in parts])
        live = torch.cat([part.live.to(device) for part in parts])
        mode = torch.arange(len(group)).repeat_interleave(
            torch.tensor([len(part.live) for part in parts])
        )
        return x, delta, live, mode.to(device)
