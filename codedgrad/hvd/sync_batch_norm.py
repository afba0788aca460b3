"""Batch norm over the samples of all workers.

Each forward and each backward is a barrier of its own, for every layer. So all workers
run the same forwards and backwards, and none can help another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from codedgrad.errors import ConfigError
from codedgrad.job import collectives


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        wide = x.double()
        axes = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        sums = collectives.allreduce(
            {
                "sum": wide.sum(axes),
                "squares": wide.pow(2).sum(axes),
                "count": float(x.numel() / max(1, x.shape[1])),
            },
            op="sum",
        )
        count = max(1.0, sums["count"])
        mean = sums["sum"] / count
        variance = (sums["squares"] / count - mean.pow(2)).clamp(min=0.0)
        scale = (variance + eps).rsqrt()
        hat = (wide - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(hat.to(x.dtype), weight, scale)
        ctx.axes, ctx.shape, ctx.count = axes, shape, count
        y = hat * weight.double().view(shape) + bias.double().view(shape)
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance * (count / max(1.0, count - 1.0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        hat, weight, scale = ctx.saved_tensors
        hat, wide = hat.double(), gradient.double()
        of_bias = wide.sum(ctx.axes)
        of_weight = (wide * hat).sum(ctx.axes)
        sums = collectives.allreduce({"b": of_bias, "w": of_weight}, op="sum")
        b, w = (sums[k].view(ctx.shape) / ctx.count for k in ("b", "w"))
        factor = (weight.double() * scale).view(ctx.shape)
        of_x = factor * (wide - b - hat * w)
        kind = weight.dtype
        return of_x.to(gradient.dtype), of_weight.to(kind), of_bias.to(kind), None


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of all workers' samples together.

    Takes the arguments of `torch.nn.BatchNorm2d`, and inputs of shape [n, channels,
    ...]. In evaluation mode it is batch norm. Collective in training: the workers may
    have unequal numbers of samples, but make the same forwards and backwards.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() < 2:
            raise ConfigError(
                f"SyncBatchNorm takes [n, channels, ...], got {tuple(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the normalised input, of the same shape."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return functional.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                eps=self.eps,
            )
        channels = input.shape[1]
        weight = input.new_ones(channels) if self.weight is None else self.weight
        bias = input.new_zeros(channels) if self.bias is None else self.bias
        normalise: Any = _Normalise.apply
        y, mean, variance = normalise(input, weight, bias, self.eps)
        if self.running_mean is not None and self.training:
            self._follow(mean, variance)
        out: Tensor = y
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            if share is None:
                share = 1.0 / float(self.num_batches_tracked)
        share = 0.0 if share is None else share
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)
