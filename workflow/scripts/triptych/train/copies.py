"""Weights in the dtype of matrix products, of what trains in fp32: copied once a step, for all of them together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from triptych.model.vlm import VisionLanguageModel, has_dora

TOGETHER = 2**27  # numbers of gradients that are turned to fp32 at a time, which bounds the memory


class WeightCopies:
    """Copies of weights with which the language model computes, while those that train stay fp32 and keep their place.

    Adapters: autocast would turn every weight into the lower dtype where it is used, and every gradient back, each by
    itself: 27 kernels in a layer. The numbers are the same. Those of DoRA stay: it divides by the lengths of a weight's
    rows, which in bf16 would be off by up to 0.4 %.

    A language model that trains: with its copies it computes as a frozen one does, which is in that dtype altogether,
    and as the checkpoint will when it answers. Updates are added to the fp32 weights: most are too small for bf16.
    """

    def __init__(self, model: VisionLanguageModel, dtype: torch.dtype, adapters: bool):
        """Make the copies.

        Args:
            model: with its adapters in fp32, and the language model where its own weights train; these are copied.
            dtype: of matrix products; no copies are needed in fp32.
            adapters: copy the adapters, which compute with inputs of any dtype from now on; otherwise they stay.
        """
        modules = model.language_model.modules() if adapters else []
        layers = [module for module in modules if isinstance(module, LoraLayer) and not has_dora(module)]
        for layer in layers:
            layer.cast_input_dtype_enabled = False
        modules = [part for layer in layers for group in (layer.lora_A, layer.lora_B) for part in group.values()]
        modules += model.language_model.modules() if model.tuning else []
        self._places: dict[int, list[tuple[nn.Module, str]]] = {}  # a tied output layer's weight is in two
        weights: dict[int, nn.Parameter] = {}
        for module in modules if dtype != torch.float32 else []:
            for name, weight in module.named_parameters(recurse=False):
                weights[id(weight)] = weight
                self._places.setdefault(id(weight), []).append((module, name))
        self._weights = list(weights.values())
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
        for group in _groups(pairs):
            gradients = [torch.empty_like(weight) for weight, _ in group]
            torch._foreach_copy_(gradients, [copy.grad for _, copy in group])
            before = [weight.grad for weight, _ in group]
            if before[0] is None:
                for (weight, _), gradient in zip(group, gradients, strict=True):
                    weight.grad = gradient
            else:
                torch._foreach_add_(before, gradients)
            for _, copy in group:
                copy.grad = None

    def _place(self, weights: Sequence[nn.Parameter]) -> None:
        for places, weight in zip(self._places.values(), weights, strict=True):
            for module, name in places:
                module._parameters[name] = weight


def _groups(pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> list[list[tuple[nn.Parameter, nn.Parameter]]]:
    """Split weights and their copies, in their order, into groups of about TOGETHER numbers."""
    groups: list[list[tuple[nn.Parameter, nn.Parameter]]] = []
    room = 0
    for pair in pairs:
        if not groups or pair[0].numel() > room:
            groups.append([])
            room = TOGETHER
        groups[-1].append(pair)
        room -= pair[0].numel()
    return groups
