"""Forwards whose gradient nobody needs, in a loop that is not ours.

Under an approximate policy the workers do not wait for one that is late. It has to
catch up with them, or they do wait, a whole window of exchanges later. Its loop cannot
be made to leave a pass out, but a pass can be made empty: where a forward for training
begins and its exchange is decoded already, the model is not computed. Its output is
that of one sample of the last forward that was, repeated to the size of the batch.

The loss then has the right shape, and says nothing; the backward ends at once with a
zero for one parameter, so that the pass is noticed like any other. `p.grad` becomes the
decoded mean, as in all exchanges.

This is done only for a model which in its last forward took tensors of one size of
batch, and gave tensors of that size; and only for inputs that are otherwise alike. A
`forward` of the module's own stands in the way of the class's for as long as this
worker is behind, and no longer: whoever inspects, copies or compiles the model at
another time sees nothing of it.
"""

from __future__ import annotations

import functools
import logging
import types
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from codedgrad.errors import ConfigError
from codedgrad.step.attach import Weakly, after_forward, is_exported
from codedgrad.step.backwards import inside_backward

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger("codedgrad")

_PLAIN = (bool, int, float, str, type(None))


class Exchanging(Protocol):
    """Knows whether anybody waits for the pass that comes."""

    def needless(self) -> bool:
        """Returns whether the exchange of the next pass is decoded already."""

    def skipped(self) -> None:
        """Hears that a forward of this exchange was not computed."""


class _Seen(NamedTuple):
    """A forward: what inputs like its own are, and its output of one sample."""

    inputs: Any
    sample: list[Tensor]
    tree: Any


class NeedlessForwards:
    """Leaves out a model's needless forwards."""

    def __init__(
        self, model: nn.Module, parameters: Iterable[Tensor], exchanging: Exchanging
    ) -> None:
        """Attach the hook; `exchanging` is held weakly.

        Args:
            model: whose forwards.
            parameters: those that are exchanged, of which one gets zeros.
            exchanging: says which forwards are needless.
        """
        wanted = [p for p in parameters if p.requires_grad]
        self._anchor = min(wanted, key=Tensor.numel)
        self._exchanging = weakref.ref(exchanging)
        self._model = weakref.ref(model)
        self._seen: _Seen | None = None
        self._skips = self._told = False
        hook = Weakly(self, NeedlessForwards._after)
        self._handle = after_forward(model, hook, kwargs=True)

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()
        if (model := self._model()) is not None:
            _take_out(model)

    def look(self) -> None:
        """Prepare for the next forward, if it is needless."""
        model, exchanging = self._model(), self._exchanging()
        if model is None or exchanging is None or self._seen is None:
            return
        if exchanging.needless() and "forward" not in vars(model):
            model.forward = _Forward(model, self)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """The hook after every forward."""
        if torch.compiler.is_compiling() or is_exported(module):
            return  # the graph of a compiled model shall know nothing of this
        if self._skips:
            self._skips = False
        elif _for_training(module):
            self._seen = _seen(args, kwargs, output, self._seen)
        self.look()

    def output(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[bool, Any]:
        """Returns whether a forward is needless, and what it returns then."""
        exchanging, seen = self._exchanging(), self._seen
        if seen is None or exchanging is None or not exchanging.needless():
            return False, None
        size, like = _inputs_of(args, kwargs)
        if not _for_training(module) or size == 0 or like != seen.inputs:
            return False, None
        self._skips = True
        exchanging.skipped()
        self._tell()
        leaves = [x.repeat(size, *[1] * (x.dim() - 1)) for x in seen.sample]
        flowing = [i for i, x in enumerate(leaves) if x.is_floating_point()]
        no_gradient: Any = _NoGradient.apply
        given = no_gradient(self, self._anchor, *(leaves[i] for i in flowing))
        for i, x in zip(flowing, given, strict=True):
            leaves[i] = x
        return True, pytree.tree_unflatten(leaves, seen.tree)

    def check(self) -> None:
        """Refuse a backward that is needed, of a forward that was needless.

        Raises:
            ConfigError: its exchange is not decoded.
        """
        exchanging = self._exchanging()
        if exchanging is not None and not exchanging.needless():
            raise ConfigError(
                "a forward was left out because its exchange was decoded already, and "
                "its backward belongs to a later one; use catch_up=False where a "
                "backward does not follow on its forward in the same step"
            )

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "this worker is behind: it leaves out forwards of exchanges that are "
                "decoded already, where its outputs and losses say nothing "
                "(optimizer.report.fast_forwarded is True then; this is said once)"
            )


class _Forward:
    """Stands in the place of one module's `forward`; copies get their own."""

    def __init__(self, module: nn.Module, needless: NeedlessForwards) -> None:
        self._module, self._needless = weakref.ref(module), weakref.ref(needless)
        functools.update_wrapper(self, _own_forward(module))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, needless = self._module(), self._needless()
        assert module is not None  # it is called
        if needless is not None:
            skipped, output = needless.output(module, args, kwargs)
            if skipped:
                return output
        if _for_training(module):
            _take_out(module)
        return _own_forward(module)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _own_forward(memo.get(id(self._module()), self._module()))

    def __reduce__(self) -> Any:
        return _own_forward, (self._module(),)


def _own_forward(module: Any) -> Any:
    return types.MethodType(type(module).forward, module)


def _take_out(module: nn.Module) -> None:
    if isinstance(vars(module).get("forward"), _Forward):
        del module.forward


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, needless: NeedlessForwards, anchor: Tensor, *x: Tensor
    ) -> Any:
        ctx.needless, ctx.anchor = needless, anchor
        return tuple(one.clone() for one in x)  # which may be changed in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.needless.check()
        return None, torch.zeros_like(ctx.anchor), *[None] * len(gradients)


def _for_training(module: nn.Module) -> bool:
    return module.training and torch.is_grad_enabled() and not inside_backward()


def _has_samples(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0


def _inputs_of(args: Any, kwargs: Any) -> tuple[int, Any]:
    """Returns the size of a batch, 0 if that is not plain to see, and all the rest."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    sizes = {x.shape[0] for x in leaves if _has_samples(x)}
    others = [x for x in leaves if not isinstance(x, Tensor)]
    if len(sizes) != 1 or not all(isinstance(x, _PLAIN) for x in others):
        return 0, None
    (size,) = sizes
    tensors = [(x.shape[1:], x.dtype) for x in leaves if isinstance(x, Tensor)]
    return (0 if size in others else size), (tree, tensors, others)


def _seen(args: Any, kwargs: Any, output: Any, before: _Seen | None) -> _Seen | None:
    """Returns what a forward was, if needless ones may be made like it.

    It is `before` where that was alike, so that outputs are not copied each time.
    """
    size, inputs = _inputs_of(args, kwargs)
    leaves, tree = pytree.tree_flatten(output)
    fits = size and leaves and all(_has_samples(x) for x in leaves)
    if not fits or any(x.shape[0] != size for x in leaves):
        return None
    if not any(x.is_floating_point() for x in leaves):
        return None
    if before is not None and (before.inputs, before.tree) == (inputs, tree):
        pairs = zip(leaves, before.sample, strict=True)
        if all(_kind(x) == _kind(one) for x, one in pairs):
            return before
    return _Seen(inputs, [x[:1].detach().clone() for x in leaves], tree)


def _kind(x: Tensor) -> Any:
    return x.shape[1:], x.dtype, x.device
