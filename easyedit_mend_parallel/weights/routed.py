"""Watches a layer of experts while it runs: which token each row is, and each product with one
expert's slice of a stack.

Experts get the tokens that a router sends them, so their rows are not those of a batch in order.
The router's choice is read off the functions that the layer calls. Knows no model by name, and
nothing of updates.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from easyedit_mend_parallel.errors import TargetError
from easyedit_mend_parallel.weights.followed_rows import MOVES, FollowedRows, Tokens
from easyedit_mend_parallel.weights.target import Target, is_stack

ROUTED = "_easyedit_mend_parallel_routed"
"""The attribute of a layer that holds its `RoutedLayer`."""
LINEAR, MATMUL = ("linear",), ("matmul", "__matmul__", "mm")
"""The functions that multiply rows by a weight: by its transpose (`nn.Linear`), and as it is."""
OF_ALL = ("bmm", "baddbmm", "matmul", "__matmul__", "einsum", "grouped_mm", "_grouped_mm")
"""The functions that may multiply by all weights of a stack at once."""


@dataclass(frozen=True)
class Use:
    """One product with a target's weight: input `x` (..., in) and output `y` (..., out).

    Of an expert, `tokens` (n,) are the numbers of the rows' tokens among the `of` tokens that its
    layer was given, one sequence after the other. None for rows that are all tokens, in their
    order, and if that is not known.
    """

    x: Tensor
    y: Tensor
    tokens: Tensor | None = None
    of: int = 0

    def of_rows(self, of_sequences: Tensor) -> Tensor:
        """The entries of `of_sequences` (B,), or (B, T), for the rows: (n,). If the rows are all
        tokens, `of_sequences` itself."""
        if self.tokens is None:
            return of_sequences
        here = self.tokens.to(of_sequences.device)
        if of_sequences.dim() == 1:
            here = here // (self.of // len(of_sequences))
        return of_sequences.flatten()[here]


See: TypeAlias = Callable[[Use], Tensor | None]
"""Is shown a use of a weight, and may return another output."""


class RoutedLayer:
    """The watch over one layer of experts, `RoutedLayer.of(layer)`: present while anything is
    watched in it. It belongs to the layer, so a deep copy of a model has a copy of it.

    While it is there, the layer multiplies by one expert's weight at a time (transformers'
    `experts_implementation="eager"`), since nothing else shows which rows are whose.
    """

    def __init__(self) -> None:
        self._watched: list[tuple[Target, See]] = []
        self._followed = 0
        self._handles: list[Any] = []
        self._config: Any = None
        self._running: dict[int, list[RoutedRows]] = {}

    @classmethod
    def of(cls, layer: nn.Module) -> RoutedLayer:
        found: RoutedLayer = getattr(layer, ROUTED, None) or cls()
        return found

    def watch(self, layer: nn.Module, target: Target, see: See, first: bool) -> None:
        """Show `see` each use of the target's weight, a slice of a parameter of `layer`; with
        `first` before all others."""
        self._watched.insert(0 if first else len(self._watched), (target, see))
        self._attach(layer)

    def unwatch(self, layer: nn.Module, target: Target, see: See) -> None:
        """Undo `watch`; does nothing if it was undone."""
        self._watched = [one for one in self._watched if one != (target, see)]
        self._detach(layer)

    def watches(self, target: Target, see: See) -> bool:
        return (target, see) in self._watched

    def follow(self, layer: nn.Module, expert: nn.Module) -> Callable[[], None]:
        """Note the tokens of each call of `expert`, a module in `layer`; until what is returned is
        called."""
        handle = expert.register_forward_pre_hook(self._enter_expert, with_kwargs=True)
        self._followed += 1
        self._attach(layer)

        def end() -> None:
            handle.remove()
            self._followed -= 1
            self._detach(layer)

        return end

    def tokens_in_expert(self, n: int) -> tuple[Tensor | None, int]:
        """`Use.tokens` and `Use.of` of n rows in the expert that is running."""
        rows = self._rows
        found = None if rows is None else rows.in_expert
        if rows is None or found is None or found.all or found.numbers.numel() != n:
            return None, 0
        return found.numbers.flatten(), rows.of

    @property
    def _rows(self) -> RoutedRows | None:
        """The watch over the call that runs in this thread."""
        running = self._running.get(threading.get_ident())
        return running[-1] if running else None

    def _attach(self, layer: nn.Module) -> None:
        if self._handles:
            return
        setattr(layer, ROUTED, self)
        self._handles = [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            layer.register_forward_hook(self._leave, always_call=True),
        ]
        config: Any = getattr(layer, "config", None)
        if getattr(config, "_experts_implementation", "eager") != "eager":
            self._config = config
            own: Any = copy.copy(config)
            own._experts_implementation_internal = "eager"
            layer.config = own  # of this layer alone

    def _detach(self, layer: nn.Module) -> None:
        if self._watched or self._followed or not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._config is not None:
            layer.config, self._config = self._config, None
        delattr(layer, ROUTED)

    def _enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = RoutedRows(layer, self._watched, _rows_given(args, kwargs))
        self._running.setdefault(threading.get_ident(), []).append(rows)
        rows.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        running = self._running.get(threading.get_ident())
        if not running:
            return
        rows = running.pop()
        if not running:
            del self._running[threading.get_ident()]
        rows.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if output is not None:
            rows.refuse_unknown_products()

    def _enter_expert(self, _expert: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        rows = self._rows
        if rows is not None:
            rows.in_expert = rows.tokens_of(_rows_given(args, kwargs))


class RoutedRows(TorchFunctionMode):
    """One call of a layer of experts, which was given the rows `x` (..., width).

    It follows the rows of `x` through the functions that move them, up to each expert. All weights
    of an expert see the same tokens in the same order.
    """

    def __init__(
        self, layer: nn.Module, watched: Sequence[tuple[Target, See]], x: Tensor | None
    ) -> None:
        super().__init__()
        self._layer, self._watched = layer, list(watched)
        self._rows = FollowedRows(x)
        self._of_expert: dict[int, Tokens] = {}
        self._used: set[str] = set()
        self.in_expert: Tokens | None = None

    @property
    def of(self) -> int:
        """The number of tokens that the layer was given."""
        return self._rows.count

    def tokens_of(self, x: Tensor | None) -> Tokens | None:
        """Which tokens the rows of `x` are; None if that is not known."""
        return self._rows.tokens_of(x)

    def refuse_unknown_products(self) -> None:
        """Raise TargetError if the layer ran, and multiplied by no slice of a watched parameter."""
        for target, _ in self._watched if self.of else ():
            if target.attribute not in self._used:
                raise TargetError(
                    f"{target.layer_name} ({type(self._layer).__name__}) does not multiply by one "
                    f"expert's slice of {target.parameter_name} at a time, so an expert's rows "
                    "cannot be seen: take its experts out of inner_params"
                )

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in (*LINEAR, *MATMUL, *OF_ALL):
            given = [*args, *(kwargs[key] for key in ("input", "weight", "other") if key in kwargs)]
            return self._product(name, given, output)
        if name in MOVES:
            self._rows.moved(name, func, args, kwargs, output)
        return output

    def _product(self, name: str, given: Sequence[Any], output: Any) -> Any:
        """Show a product with an expert's slice to those who watch it; the output for the layer."""
        x, weight = (*given, None, None)[:2]
        found = self._slice_of(weight)
        if found is None or name not in (*LINEAR, *MATMUL):
            self._refuse_product_with_all(given)
            return output
        attribute, expert, turned = found
        self._used.add(attribute)
        tokens, of = self._tokens_in(expert, x)
        for target, see in self._watched:
            if (target.attribute, target.expert) == (attribute, expert):
                if target.transposed != ((name in MATMUL) != turned):
                    raise _stored_otherwise(target, self._layer)
                changed = see(Use(x, output, tokens, of))
                output = output if changed is None else changed
        return output

    def _tokens_in(self, expert: int, x: Tensor) -> tuple[Tensor | None, int]:
        """`Use.tokens` and `Use.of` of the rows x in an expert."""
        found = self.tokens_of(x)
        if found is None:
            found = self._of_expert.get(expert)
        if found is None or found.numbers.numel() != x.shape[:-1].numel():
            return None, 0
        self._of_expert[expert] = found
        return found.numbers.flatten(), self.of

    def _slice_of(self, weight: Any) -> tuple[str, int, bool] | None:
        """The parameter and the number of the slice that `weight` is a view of, and whether it is
        transposed; None if it is no slice of the layer's stacks."""
        if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.numel():
            return None
        for name, stack in self._stacks().items():
            if _memory(weight) != _memory(stack):
                continue
            apart = int(weight.storage_offset()) - int(stack.storage_offset())
            expert, rest = divmod(apart, stack.stride(0))
            if rest or not 0 <= expert < len(stack):
                continue
            how = (tuple(weight.shape), weight.stride())
            if how == (tuple(stack.shape[1:]), stack.stride()[1:]):
                return name, expert, False
            if how == (tuple(stack.shape[:0:-1]), stack.stride()[:0:-1]):
                return name, expert, True
        return None

    def _refuse_product_with_all(self, given: Sequence[Any]) -> None:
        stacks = self._stacks()
        for one in given:
            if isinstance(one, Tensor) and one.dim() == 3:
                names = [name for name, stack in stacks.items() if _memory(one) == _memory(stack)]
                for target, _ in self._watched:
                    if target.attribute in names:
                        self._used.discard(target.attribute)
                        self.refuse_unknown_products()

    def _stacks(self) -> dict[str, Tensor]:
        """The layer's stacks as they are now: accelerate loads offloaded ones while it runs."""
        return {
            name: parameter
            for name, parameter in self._layer._parameters.items()
            if parameter is not None and is_stack(self._layer, parameter)
        }


def _rows_given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The rows that a layer is given: its first argument that can be multiplied by a weight."""
    for one in (*args, *kwargs.values()):
        if isinstance(one, Tensor) and one.dim() > 1 and one.is_floating_point():
            return one
    return None


def _memory(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _stored_otherwise(target: Target, layer: nn.Module) -> TargetError:
    says = "in × out" if target.transposed else "out × in"
    how = (
        "its layer says that its experts are stored so"
        if hasattr(layer, "is_transposed")
        else "its layer does not say how they are stored (is_transposed)"
    )
    return TargetError(
        f"{target.name} was taken for a weight that is stored {says}, since {how}, and its layer "
        "uses it the other way round: take it out of inner_params"
    )
