"""Adapters' weights in the dtype of matrix products: copied once a step, for all adapters together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


class AdapterCopies:
    """Copies of LoRA's weights with which layers compute, while those that train stay fp32 and keep their place.

    Autocast would turn every weight into the lower dtype where it is used, and every gradient back, each by itself: 27
    kernels in a layer. The numbers are the same.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, wanted: bool):
        """Make the copies.

        Args:
            model: with its adapters in fp32, which compute with inputs of any dtype from now on.
            dtype: of matrix products; no copies are needed in fp32.
            wanted: False: none are made, and the model stays as it is.
        """
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)] if wanted else []
        for layer in layers:
            layer.cast_input_dtype_enabled = False
        adapters = [part for layer in layers for group in (layer.lora_A, layer.lora_B) for part in group.values()]
        self._adapters = [] if dtype == torch.float32 else adapters
        self._weights = [adapter.weight for adapter in self._adapters]
        self._copies = [nn.Parameter(one.detach().to(dtype), one.requires_grad) for one in self._weights]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let layers compute with the copies, made anew, until the block ends."""
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._weights)
        self._place(self._copies)
        try:
            yield
        finally:
            self._place(self._weights)

    def collect_gradients(self) -> None:
        """Add the copies' gradients to those of the weights, in fp32, after a backward pass."""
        pairs = [pair for pair in zip(self._weights, self._copies, strict=True) if pair[1].grad is not None]
        if not pairs:
            return
        gradients = [torch.empty_like(weight) for weight, _ in pairs]
        torch._foreach_copy_(gradients, [copy.grad for _, copy in pairs])
        before = [weight.grad for weight, _ in pairs]
        if before[0] is None:
            for (weight, _), gradient in zip(pairs, gradients, strict=True):
                weight.grad = gradient
        else:
            torch._foreach_add_(before, gradients)
        for _, copy in pairs:
            copy.grad = None

    def _place(self, weights: list[nn.Parameter]) -> None:
        for adapter, weight in zip(self._adapters, weights, strict=True):
            adapter._parameters["weight"] = weight
