"""A least-squares system of one target that grows by the rows of each edit, at a flat cost.

Has rows of one layer at a time. Knows no model, and not how the rows are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from easyedit_mend_parallel.errors import UpdateError
from easyedit_mend_parallel.method.least_squares import OF_ALL, PreservedRows, scale_of
from easyedit_mend_parallel.method.preserved_text import PreservedInputs
from easyedit_mend_parallel.weights.target import Target
from easyedit_mend_parallel.weights.update import LowRankUpdate

SMALLEST_RIDGE = 1e-8
"""The least ridge of a system, in units of the mean square of a row."""
LARGEST_ERROR = 1e-6
"""How far P may be from the inverse that it stands for, on a probe, before it is computed anew."""


@dataclass(frozen=True)
class SystemOptions:
    """What tells the systems of one sequence from those of another.

    `network` is the fingerprint of the network that makes the edits (`Trained.fingerprint`);
    `preserved` are the token ids of preserved text. The rest is as in `Aggregate`.
    """

    ridge: float
    label_weight: float
    preserved_text_weight: float
    network: int
    preserved: tuple[tuple[int, ...], ...] = ()
    continuation_weight: float = 0.0
    solve_single: bool = False

    @property
    def solves_one(self) -> bool:
        """Whether the update of one request comes from the systems, too."""
        return self.solve_single or self.continuation_weight > 0


@dataclass(frozen=True)
class SolveRows:
    """What one edit asks of a target: at inputs x, add the outputs d. In half precision.

    `x` (n, in) and `d` (n, out) are fp16, each row divided by its largest entry, which `x_size`
    and `d_size` (n, 1), fp32, hold. `label_mask` (n,) is true where a token predicts a label, and
    `request` (n,) is the index of each row's request within its edit.
    """

    x: Tensor
    x_size: Tensor
    d: Tensor
    d_size: Tensor
    label_mask: Tensor
    request: Tensor

    @classmethod
    def of(cls, x: Tensor, d: Tensor, label_mask: Tensor, request: Tensor) -> SolveRows:
        x, d = x.detach().float(), d.detach().float()
        x_size, d_size = (one.abs().amax(1, keepdim=True).clamp(min=1e-30) for one in (x, d))
        half_x, half_d = (x / x_size).half(), (d / d_size).half()
        return cls(half_x, x_size, half_d, d_size, label_mask, request)

    @classmethod
    def cat(cls, parts: Sequence[SolveRows]) -> SolveRows:
        """The rows of one below those of the other."""
        return cls(
            *(torch.cat(one) for one in zip(*(part._fields() for part in parts), strict=True))
        )

    def rows(self, label_weight: float) -> tuple[Tensor, Tensor]:
        """(x, d) in float64, rows that predict a label scaled by the root of `label_weight`."""
        heavy = scale_of(self.label_mask, label_weight).double()
        return self.x.double() * self.x_size * heavy, self.d.double() * self.d_size * heavy

    def to(self, device: torch.device) -> SolveRows:
        return SolveRows(*(one.to(device) for one in self._fields()))

    def of_requests(self, numbers: Sequence[int]) -> SolveRows:
        """The rows of these requests, which are then numbered in that order."""
        count = 1 + max([*numbers, *self.request.tolist()])
        new = torch.full((count,), -1, device=self.request.device)
        new[list(numbers)] = torch.arange(len(numbers), device=new.device)
        kept = (new[self.request] >= 0).nonzero().flatten()
        rows = SolveRows(*(one[kept] for one in self._fields()))
        return replace(rows, request=new[rows.request])

    @cached_property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self._fields())

    def _fields(self) -> tuple[Tensor, ...]:
        return (self.x, self.x_size, self.d, self.d_size, self.label_mask, self.request)


@dataclass(frozen=True)
class _Step:
    """What an edit brought in: keys (n, in) and values (n, out), and Xᵀ X of the probe (in,)."""

    keys: Tensor
    values: Tensor
    probed: Tensor

    @classmethod
    def cat(cls, steps: Sequence[_Step]) -> _Step:
        """What several edits brought in."""
        return cls(
            torch.cat([step.keys for step in steps]),
            torch.cat([step.values for step in steps]),
            torch.stack([step.probed for step in steps]).sum(0),
        )


@dataclass(frozen=True)
class _State:
    """Edits that were added up: P (in, in), None for I; Δᵀ (in, out), None for 0; and what the
    inputs of all make of the probe (in,). In float64."""

    factor: Tensor | None = None
    solution: Tensor | None = None
    probed: Tensor | None = None

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor] | None:
        """The solution as keys (in, in), those of the identity, and values (in, out), in fp32."""
        if self.solution is None:
            return None
        return torch.eye(len(self.solution), device=self.solution.device), self.solution.float()

    @property
    def tensors(self) -> list[Tensor]:
        return [one for one in (self.factor, self.solution) if one is not None]

    def after(self, step: _Step) -> _State:
        """With what further edits brought in."""
        factor, solution, probed = self.factor, self.solution, self.probed
        device, width = step.keys.device, step.keys.shape[1]
        if factor is None:
            factor = torch.eye(width, dtype=step.keys.dtype, device=device)
        if probed is None:
            probed = torch.zeros(width, dtype=step.keys.dtype, device=device)
        gain = step.keys.T @ step.values
        return _State(
            factor.to(device) - step.keys.T @ step.keys,
            gain if solution is None else solution.to(device) + gain,
            probed.to(device) + step.probed,
        )


class GrowingSystem:
    """min_Δ Σ_t ‖Δ x_t − d_t‖² + c‖Δ‖² over the rows of all edits, solved anew with each edit.

    Recursive least squares: with P = c (XᵀX + cI)⁻¹ and the solution Δ so far, rows (X_k, D_k)
    bring R = X_k P, S = X_k Rᵀ + cI = LLᵀ, and with keys Z = L⁻¹R and values V = L⁻¹(D_k − X_k Δᵀ)

        Δ ← Δ + Vᵀ Z,        P ← P − Zᵀ Z

    (the matrix inversion lemma; e.g. Golub and Van Loan, *Matrix Computations*, 2.1.4). So an edit
    costs its rows × in², however many came before it, and is undone, where it is the last, by
    leaving out its keys and values. The solution depends on the order of the edits by rounding
    only. In float64 on the device of the rows.

    Inputs of preserved text (d = 0) are in P from the beginning. c is `ridge` times the mean square
    of a row of those, or without any, of a row of the first edit. Steps are added up into one
    matrix (in × out) where their keys would be more than the layer has inputs; from then on, where
    they are more than a quarter of that, so that further edits cost the same.
    """

    def __init__(self, name: str, options: SystemOptions, preserved: PreservedRows | None) -> None:
        self._name = name
        self._label_weight = options.label_weight
        self._relative = max(options.ridge, SMALLEST_RIDGE)
        self._ridge = 0.0 if preserved is None else self._relative * preserved.mean_square
        self._empty = _start(name, self._ridge, preserved, options.preserved_text_weight)
        self._now = self._start = self._empty
        self._steps: list[_Step] = []

    def add(self, rows: SolveRows) -> None:
        """Take in the rows of a further edit. Raises UpdateError for rows that cannot be solved."""
        x, d = rows.rows(self._label_weight)
        self._ridge = self._ridge_of(rows.rows(1.0)[0])
        keys, root = self._keys(x, self._project(x), self._ridge)
        values = torch.linalg.solve_triangular(root, d - self._added(x), upper=False)
        self._steps.append(_Step(keys, values, x.T @ (x @ _probe(x))))
        if sum(len(step.keys) for step in self._steps) > self._room(x.shape[1]):
            self._add_up(len(self._steps) // 2)

    def alone(self, x: Tensor, d: Tensor, label_mask: Tensor) -> LowRankUpdate:
        """The update of these rows as those of the only edit, fp32, with one row for each of them.

        `x` (n, in) and `d` (n, out) are on the device of the system's rows, and `label_mask` (n,)
        as in `SolveRows`. Differentiable in `d`; the system does not change. Raises UpdateError as
        `add` does.
        """
        heavy = scale_of(label_mask, self._label_weight).double()
        x = x.detach().double() * heavy
        ridge = self._ridge_of(x)
        keys, root = self._keys(x, _projected(x, self._empty.factor), ridge)
        values = torch.linalg.solve_triangular(root, d.double() * heavy, upper=False)
        request = torch.full((len(x),), OF_ALL, device=x.device)
        return LowRankUpdate(keys.float(), values.float(), request)

    def drop_last(self) -> bool:
        """Take the last edit out again; False where it was added up with others already."""
        if not self._steps:
            return False
        self._steps.pop()
        return True

    def restart(self) -> None:
        """Take every edit out but those that were settled."""
        self._now, self._steps = self._start, []

    def settle(self, rows: Sequence[SolveRows]) -> None:
        """From now on `restart` keeps these edits, the oldest: their rows can be let go."""
        later = self._now, self._steps
        self.restart()
        for one in rows:
            self.add(one)
        self._add_up(len(self._steps))
        self._start = self._now
        self._now, self._steps = later

    def error(self) -> float:
        """How far P is from c (XᵀX + cI)⁻¹, on one vector, relative to it; grows with rounding.

        A system that is further off than `LARGEST_ERROR` is to be solved from its rows again.
        """
        if not self._steps or not self._ridge:
            return 0.0
        probe = _probe(self._steps[-1].keys)
        image = sum((step.probed for step in self._steps), self._ridge * probe)
        if self._now.probed is not None:
            image = image + self._now.probed.to(probe.device)
        found = self._project(image.unsqueeze(0))[0]
        return float((found - self._ridge * probe).norm() / (self._ridge * probe.norm()))

    def net(self) -> LowRankUpdate:
        """The update that all edits come to, fp32, on the device of their rows."""
        keys = [step.keys.float() for step in self._steps]
        values = [step.values.float() for step in self._steps]
        unit = 0
        if self._now.rows is not None:
            unit_keys, added_up = self._now.rows
            unit, keys, values = len(unit_keys), [unit_keys, *keys], [added_up, *values]
        joined = torch.cat(keys), torch.cat(values)
        request = torch.full((len(joined[0]),), OF_ALL, device=joined[0].device)
        return LowRankUpdate(*joined, request, unit)

    @property
    def nbytes(self) -> int:
        """The memory of the factor and of the solution, now and at the start."""
        held = [*self._now.tensors, *self._start.tensors, *self._empty.tensors]
        held += self._now.rows or ()
        held += [tensor for step in self._steps for tensor in (step.keys, step.values)]
        return sum(tensor.nbytes for tensor in {id(one): one for one in held}.values())

    def _ridge_of(self, x: Tensor) -> float:
        """c: that of the system, or where it has none yet, by the rows x (n, in) of an edit; none
        (an expert that no token reached) leave it open."""
        if not len(x):
            return self._ridge
        return self._ridge or self._relative * float(x.square().sum(1).mean())

    def _keys(self, x: Tensor, projected: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Z = L⁻¹ X P (n, in) of further inputs x (n, in) with `projected` = X P, and L (n, n)."""
        identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
        root, failed = torch.linalg.cholesky_ex(projected @ x.T + ridge * identity)
        if failed:
            raise UpdateError(
                f"the system of {self._name} cannot be solved: its rows are not finite, or repeat "
                "each other. Nothing was written. Load the model in bfloat16 or float32, or set a "
                "larger ridge in aggregate_options"
            )
        return torch.linalg.solve_triangular(root, projected, upper=False), root

    def _project(self, x: Tensor) -> Tensor:
        """x P, (n, in)."""
        found = _projected(x, self._now.factor)
        for step in self._steps:
            found = found - (x @ step.keys.T) @ step.keys
        return found

    def _added(self, x: Tensor) -> Tensor:
        """x Δᵀ, (n, out): what the solution so far adds at x; a scalar 0 where there is none."""
        found = torch.zeros((), dtype=x.dtype, device=x.device)
        if self._now.solution is not None:
            found = found + x @ self._now.solution.to(x.device)
        for step in self._steps:
            found = found + (x @ step.keys.T) @ step.values
        return found

    def _room(self, width: int) -> int:
        """How many keys steps may have together, for a layer of `width` inputs."""
        return width if self._now.solution is None else width // 4

    def _add_up(self, count: int) -> None:
        """Make the first `count` steps part of the state."""
        steps, self._steps = self._steps[:count], self._steps[count:]
        if steps:
            self._now = self._now.after(_Step.cat(steps))


def empty_systems(
    targets: Sequence[Target], options: SystemOptions, preserved: PreservedInputs | None
) -> dict[str, GrowingSystem]:
    """{target name: the system of no edit}, with the inputs of preserved text in it."""
    of = {} if preserved is None else {name: x for name, x in preserved.of.items() if x.count}
    return {
        target.name: GrowingSystem(target.name, options, of.get(target.name)) for target in targets
    }


def _start(name: str, ridge: float, preserved: PreservedRows | None, weight: float) -> _State:
    """The state of no edit, with P = c (w Xᵀ X + cI)⁻¹ of the preserved text's inputs X."""
    if preserved is None or not weight:
        return _State()
    gram = preserved.gram
    if gram is None:
        assert preserved.rows is not None
        rows = preserved.rows.double()
        gram = rows.T @ rows
    scaled = gram * (weight / ridge)
    scaled.diagonal().add_(1.0)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    if failed:
        raise UpdateError(
            f"what {name} sees of the preserved text is not finite, so no system can be solved; "
            "nothing was written. Load the model in bfloat16 or float32"
        )
    return _State(torch.cholesky_inverse(factor), None, weight * (gram @ _probe(gram)))


def _projected(x: Tensor, factor: Tensor | None) -> Tensor:
    """x P, (n, in), for the P of added-up edits."""
    return x if factor is None else x @ factor.to(x.device)


def _probe(like: Tensor) -> Tensor:
    """One vector (in,) of mixed signs, on the device of `like` (n, in)."""
    return torch.cos(torch.arange(like.shape[1], dtype=like.dtype, device=like.device))
