"""The updates of many requests made into one: how, and the least-squares system of one target.

Sees token rows of one layer at a time. Knows no model, and nothing of where rows come from.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import HparamsError, UpdateError, suggestion
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

log = logging.getLogger(__name__)

HOW = ("mean_loss", "sum", "least_squares")
"""EasyEdit's one mean loss; each request's update added up; one system solved for all."""
KEYS_FROM = ("edited", "unedited")
"""The forward pass of a system's inputs: edited by each request's own update, or unedited."""
NUMBERS = ("ridge", "label_weight", "preserved_text_weight", "continuation_weight")
FORMER_NAMES = {
    "rows": "keys_from",
    "predicting_weight": "label_weight",
    "held_still": "preserved_text",
    "held_still_weight": "preserved_text_weight",
    "own_run": "edited",
    "unedited_run": "unedited",
}
"""What older archives call options and values, and their names now."""
OF_ALL = -1
"""The request of an update's rows that belong to all requests together."""
RAISED = 10.0
"""By how much a ridge is multiplied that leaves a system ill-conditioned."""
SMALLEST_RIDGE, LARGEST_RIDGE = 1e-12, 1e2


@dataclass(frozen=True)
class Aggregate:
    """How the updates of several requests become one. Raises HparamsError for what it cannot be.

    `how` is one of `HOW`; the rest concerns `least_squares`. `ridge` is λ, in units of the mean
    square of a row. `keys_from` is one of `KEYS_FROM`. A token that predicts a token of its target
    counts `label_weight` times as much as another token of the request. Each of the `passes` after
    the first sets the system up again, from the inputs under the update of the pass before, and
    asks for the outputs of each request's own edited forward pass (with `unedited` there are none).
    `preserved_text` are lines of unrelated text (None: those that ship) on whose inputs the update
    must not act; `preserved_text_weight` is the weight of one of their tokens beside one of a
    request's; 0 leaves them out. `continuation_weight` is the same for tokens of the text with
    which the unedited model continues after the target; with 0 there is no such text. With
    `solve_single` one request is solved, too, instead of keeping its own update.
    """

    how: str = "least_squares"
    keys_from: str = "edited"
    ridge: float = 1e-3
    label_weight: float = 10.0
    passes: int = 2
    preserved_text: tuple[str, ...] | None = None
    preserved_text_weight: float = 0.1
    continuation_weight: float = 0.0
    solve_single: bool = False

    def __post_init__(self) -> None:
        for name, known in (("how", HOW), ("keys_from", KEYS_FROM)):
            value = getattr(self, name)
            if value not in known:
                raise HparamsError(
                    f"aggregate: {name} is {value!r}; it has to be one of {', '.join(known)}"
                    + suggestion(value, known)
                )
        if not isinstance(self.passes, int) or isinstance(self.passes, bool) or self.passes < 1:
            raise HparamsError(f"aggregate: passes is {self.passes!r}; it has to be 1 or more")
        for name in NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise HparamsError(f"aggregate: {name} is {value!r}; it has to be 0 or more")
        if not isinstance(self.solve_single, bool):
            raise HparamsError(
                f"aggregate: solve_single is {self.solve_single!r}; it has to be true or false"
            )

    @property
    def solves_one(self) -> bool:
        """Whether the update of one request comes from a system, too."""
        return self.goes_on or (self.how == "least_squares" and self.solve_single)

    @property
    def goes_on(self) -> bool:
        """Whether systems have rows of the text that follows a target."""
        return self.how == "least_squares" and self.continuation_weight > 0

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str) -> Aggregate:
        """From names and values as JSON or yaml say them; `source` is named in the HparamsError."""
        if not isinstance(values, Mapping):
            raise HparamsError(f"{source}: {values!r} does not map options to their values")
        values = {
            FORMER_NAMES.get(name, name): FORMER_NAMES.get(value, value)
            if isinstance(value, str)
            else value
            for name, value in values.items()
        }
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise HparamsError(f"{source}: unknown option {name!r}" + suggestion(name, known))
        converted = dict(values)
        for name in NUMBERS:
            if isinstance(converted.get(name), str):  # yaml reads `1e-4` as a string
                try:
                    converted[name] = float(converted[name])
                except ValueError:
                    raise HparamsError(
                        f"{source}: {name} is {converted[name]!r}, not a number"
                    ) from None
        lines = converted.get("preserved_text")
        if lines is not None:
            if not isinstance(lines, (list, tuple)) or not all(isinstance(x, str) for x in lines):
                raise HparamsError(f"{source}: preserved_text has to be a list of lines of text")
            converted["preserved_text"] = tuple(lines)
        try:
            return cls(**converted)
        except HparamsError as error:
            raise HparamsError(f"{source}: {error}") from None


@dataclass(frozen=True)
class PreservedRows:
    """Inputs of one target to which nothing must be added: n of them, in the smaller form.

    `rows` is (n, in), in the model's dtype; or None, with `gram` (in, in) instead, their sum of
    outer products in float64. On the target's device.
    """

    count: int
    rows: Tensor | None
    gram: Tensor | None = None

    @property
    def mean_square(self) -> float:
        """The mean of ‖x‖² over the inputs."""
        if self.gram is not None:
            return float(self.gram.diagonal().sum()) / self.count
        assert self.rows is not None
        return float(self.rows.double().square().sum()) / self.count


class System:
    """The least-squares system of one target: min_Δ Σ_t ‖Δ x_t − d_t‖² + λμ‖Δ‖².

    The sum is over the tokens of all requests, x_t a token's input and d_t what its own request's
    update adds there, and over preserved inputs with d = 0, all weighted; μ is the mean of ‖x_t‖².
    With inputs from each request's edited forward pass, it asks for every token's output in that
    pass. With inputs from the unedited one it resembles MALMEN (Tan et al. 2024), which takes each
    token's own coefficient and a learned ridge, and trains its network through the solve.

    With X (n, in) and D (n, out), rows scaled by the roots of their weights, the solution is
    ΔW = Dᵀ (XXᵀ + λμI)⁻¹ X. Solved in float64 by Cholesky, in one of two forms. *By rows*, of size
    n: the update has the rows D and (XXᵀ + λμI)⁻¹ X, which stay small where rows of X repeat each
    other. *By inputs*, of size in: XᵀX and XᵀD are added up as rows come,
    ΔWᵀ = (XᵀX + λμI)⁻¹ XᵀD, and an update of full rank has as many rows as the layer has inputs.
    The two are the same matrix.
    """

    def __init__(
        self, target: Target, by_rows: bool, options: Aggregate, preserved: PreservedRows | None
    ) -> None:
        self._target = target
        self._options = options
        self._preserved = preserved
        self._by_rows = by_rows
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._gram: Tensor | None = None
        self._product: Tensor | None = None
        self._count, self._square = 0, 0.0
        self._device = torch.device("cpu")

    def add(self, x: Tensor, d: Tensor, request: Tensor, label_mask: Tensor, after: Tensor) -> None:
        """Take in inputs x (n, in) and what is to be added there, d (n, out).

        `request` (n,) is the request of each, `label_mask` (n,) where it predicts a label, and
        `after` (n,) where it is a token after the target.
        """
        self._device = x.device
        self._count += len(x)
        self._square += float(x.double().square().sum())
        heavy = scale_of(label_mask, self._options.label_weight)
        heavy = heavy * scale_of(after, self._options.continuation_weight)
        x, d = x.float() * heavy, d.float() * heavy
        if self._by_rows:
            self._kept.append((x, d, request))
            return
        x, d = x.double(), d.double()
        if self._gram is None or self._product is None:
            self._gram = self._preserved_gram(x.device)
            self._product = x.new_zeros(x.shape[1], d.shape[1])
        self._gram.addmm_(x.T, x)
        self._product.addmm_(x.T, d)

    def solved(self) -> LowRankUpdate:
        """The one update, fp32, where the rows came from.

        Raises UpdateError where the rows are not finite, or no ridge makes the system solvable.
        """
        if not self._count:  # an expert that no token reaches
            return LowRankUpdate(
                torch.empty(0, self._target.in_features, device=self._device),
                torch.empty(0, self._target.out_features, device=self._device),
                torch.empty(0, dtype=torch.long, device=self._device),
            )
        mean = self._square / max(1, self._count) or 1.0
        if not mean < float("inf"):
            raise UpdateError(
                f"the inputs of {self._target.name} are not finite, so no system can be solved; "
                "nothing was written. Load the model in bfloat16 or float32"
            )
        if self._by_rows:
            return self._solved_by_rows(mean)
        assert self._gram is not None
        assert self._product is not None
        factor = self._factor(self._gram, mean)
        values = torch.cholesky_solve(self._product, factor).float()
        n = len(values)
        return LowRankUpdate(
            torch.eye(n, device=values.device),
            values,
            torch.full((n,), OF_ALL, device=values.device),
        )

    def _solved_by_rows(self, mean: float) -> LowRankUpdate:
        x, d, request = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        all_rows = x.double()
        if self._preserved is not None and self._preserved.rows is not None:
            still = (
                self._preserved.rows.to(x.device).double()
                * self._options.preserved_text_weight**0.5
            )
            all_rows = torch.cat([all_rows, still])
        factor = self._factor(all_rows @ all_rows.T, mean)
        keys = torch.cholesky_solve(all_rows, factor)[: len(x)]
        return LowRankUpdate(keys.float(), d, request)

    def _preserved_gram(self, device: torch.device) -> Tensor:
        width = self._target.in_features
        gram = torch.zeros(width, width, dtype=torch.float64, device=device)
        preserved = self._preserved
        if preserved is not None and preserved.gram is not None:
            gram += preserved.gram.to(device)
        elif preserved is not None and preserved.rows is not None:
            rows = preserved.rows.to(device).double()
            gram.addmm_(rows.T, rows)
        return gram.mul_(self._options.preserved_text_weight)

    def _factor(self, gram: Tensor, mean: float) -> Tensor:
        """The Cholesky factor of `gram` (changed) + λμI, with λ raised where it has to be."""
        ridge, diagonal = self._options.ridge, gram.diagonal().clone()
        enough = len(gram) * torch.finfo(gram.dtype).eps
        while ridge <= LARGEST_RIDGE:
            gram.diagonal().copy_(diagonal + ridge * mean)
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(gram)
            pivots = factor.diagonal()
            if not failed and (pivots.min() / pivots.max()).square() > enough:
                if ridge > self._options.ridge:
                    log.warning(
                        "%s: rows of the batch repeat each other, so its system was solved with "
                        "ridge %.0e instead of %.0e",
                        self._target.name,
                        ridge,
                        self._options.ridge,
                    )
                return factor
            ridge = max(SMALLEST_RIDGE, ridge * RAISED)
        raise UpdateError(
            f"the system of {self._target.name} cannot be solved with any ridge; nothing was "
            "written. Check the model's dtype, or set `aggregate: sum`"
        )


def scale_of(marked: Tensor, weight: float) -> Tensor:
    """(n, 1), fp32: what rows are multiplied by, so that those that are `marked` (n,) count
    `weight` times as much as the others."""
    root: float = weight**0.5
    return marked.unsqueeze(1).float() * (root - 1) + 1


def bytes_for_a_token(targets: Sequence[Target]) -> int:
    """Memory of a token while its part of a batch is worked on: x, δ, keys, values, x, y, twice."""
    return sum(4 * 4 * (target.in_features + target.out_features) for target in targets)


def bytes_by_rows(target: Target, n: int, n_preserved: int) -> int:
    """Memory of a system solved by rows: rows, Gram matrix, factor and solution."""
    size = n + n_preserved
    rows = 4 * n * (2 * target.in_features + target.out_features)
    return rows + 8 * (2 * size * size + 2 * size * target.in_features)


def bytes_by_inputs(target: Target) -> int:
    """Memory of a system solved by inputs: two sums, factor and solution."""
    width, out = target.in_features, target.out_features
    return 8 * (2 * width * width + 2 * width * out) + 4 * width * (width + out)
