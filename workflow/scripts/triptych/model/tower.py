"""A vision encoder as a part of the model: its weights or adapters train, or have trained, and it reads pixels."""

from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import nn

from triptych.config.stages import Lora
from triptych.errors import TriptychError
from triptych.model.vision import Encoder, own_precision

VISION_FILE, VISION_ADAPTER_FILE = "vision_encoder.safetensors", "vision_adapter.safetensors"
LORA = ".lora_"  # in names of adapters' weights
SIDE = 64  # of the image by which it is found what tokens depend on


class VisionTower(nn.Module):
    """Computes tokens of pixels as the feature step does: with the same weights, they are the same tokens.

    It is always in evaluation mode: batch norms keep the statistics that they were trained with, which the images of
    one step would only blur, and nothing is dropped.

    Attributes:
        network: the encoder, in fp32.
        tuned: its own weights are not the base's, but trained.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype):
        """Take an encoder.

        Args:
            encoder: its network becomes this module's.
            dtype: in which features are stored; tokens are rounded to it.
        """
        super().__init__()
        self.network = encoder.network
        self.tuned = False
        self._encode, self._dtype = encoder.encode, dtype
        self._blank = encoder.preprocess([Image.new("RGB", (SIDE, SIDE))])

    def train(self, mode: bool = True) -> "VisionTower":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, S, S) as tokens (B, N, D), float32, rounded as stored ones are.

        Gradients pass as if they were not rounded.
        """
        with own_precision(self._dtype, pixels.device):
            tokens = self._encode(self.network, pixels).float()
        return tokens + (tokens.to(self._dtype).float() - tokens).detach()

    @property
    def trains(self) -> bool:
        """True when some of its weights or adapters train."""
        return any(weight.requires_grad for weight in self.network.parameters())

    @property
    def tuning(self) -> bool:
        """True when its own weights train."""
        return any(weight.requires_grad for name, weight in self.network.named_parameters() if LORA not in name)

    @property
    def adapted(self) -> bool:
        """True when it has adapters."""
        return any(LORA in name for name, _ in self.network.named_parameters())

    def adapt(self, settings: Lora, seed: int) -> None:
        """Add fresh adapters in fp32, whose weights depend on `seed` alone.

        Raises:
            TriptychError: it has no layer of a name in `lora.vision_target_modules`.
        """
        linear = [name for name, module in self.network.named_modules() if isinstance(module, nn.Linear)]
        reached = self._reached(None)
        layers = {name.rsplit(".", 1)[-1] for name in linear if f"{name}.weight" in reached}
        if unknown := set(settings.vision_target_modules) - layers:
            raise TriptychError(
                f"lora.vision_target_modules: the vision encoder has no linear layer {', '.join(sorted(unknown))} that "
                f"tokens depend on; it has {', '.join(sorted(layers)) or 'none: train vision_encoder instead'}"
            )
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=list(settings.vision_target_modules),
            use_rslora=settings.use_rslora,
            use_dora=settings.use_dora,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.network)
        super().train(False)

    def merge(self) -> None:
        """Add the adapters to the weights, and remove them."""
        for parent in list(self.network.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, LoraLayer):
                    layer.merge(safe_merge=True)
                    setattr(parent, name, layer.get_base_layer())
        self.tuned = True

    def states(self) -> dict[str, dict[str, torch.Tensor]]:
        """Collect the tensors that a checkpoint holds of it, by file and name: its own if tuned, and adapters."""
        found = {VISION_FILE: {}, VISION_ADAPTER_FILE: {}}
        for name, tensor in self.network.state_dict().items():
            found[VISION_ADAPTER_FILE if LORA in name else VISION_FILE][name.replace(".base_layer.", ".")] = tensor
        return {file: found[file] for file, there in zip(found, (self.tuned, self.adapted), strict=True) if there}

    @torch.no_grad()
    def load(self, file: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over the tensors of one of these files, which has exactly the same ones."""
        for name, tensor in self.states()[file].items():
            tensor.copy_(tensors[name])

    def trainable(self, blocks: int | None) -> set[str]:
        """Name the weights of `network` that tokens depend on: all of them, or those from a block on.

        Args:
            blocks: count this many blocks from the last that tokens depend on; None for the whole encoder.

        Raises:
            TriptychError: there are not so many.
        """
        reached = self._reached(None)
        if blocks is None:
            return reached
        name, modules = self._blocks()
        used = [
            block for place, block in enumerate(modules) if any(one.startswith(f"{name}.{place}.") for one in reached)
        ]
        if blocks > len(used):
            raise TriptychError(
                f"vision.blocks: {blocks}, but the encoder's tokens depend on {len(used)} of its {len(modules)} blocks"
            )
        return self._reached(used[-blocks])

    def kept_bytes(self) -> int:
        """Count the bytes that the forward pass of one image keeps for the backward pass, beside the weights."""
        weights = {weight.untyped_storage().data_ptr() for weight in self.network.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tokens = self(self._pixels())  # held until all is counted: freed memory would be counted twice
        return sum(kept.values()) if tokens.requires_grad else 0

    def _pixels(self) -> torch.Tensor:
        return self._blank.to(next(self.network.parameters()).device)

    def _blocks(self) -> tuple[str, nn.ModuleList]:
        """Give the encoder's blocks, its longest list of modules, with their name."""
        lists = [(name, module) for name, module in self.network.named_modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=lambda one: len(one[1]))

    def _reached(self, first: nn.Module | None) -> set[str]:
        """Name the weights that gradients reach; with a `first` block, from there on."""
        weights = dict(self.network.named_parameters())
        before = {name: weight.requires_grad for name, weight in weights.items()}
        self.network.requires_grad_(True)
        cut = first.register_forward_pre_hook(_without_gradient, with_kwargs=True) if first else None
        try:
            with torch.enable_grad():
                total = self(self._pixels()).sum()
            gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        finally:
            if cut:
                cut.remove()
            for name, weight in weights.items():
                weight.requires_grad_(before[name])
        return {name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}


def _without_gradient(module: nn.Module, inputs: tuple, options: dict) -> tuple[tuple, dict]:
    """Cut the graph before a module."""

    def cut(value: object) -> object:
        return value.detach() if isinstance(value, torch.Tensor) else value

    return tuple(map(cut, inputs)), {name: cut(value) for name, value in options.items()}
