"""The trained part and the frozen part together: connector, language model, optional LoRA."""

import math
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from triptych.model.attention import find_blocks, is_blockwise
from triptych.model.batch import Batch
from triptych.settings import Connector, Lora
from triptych.storage import TriptychError

CONNECTOR_FILE = "connector.safetensors"
ADAPTER_FILE = "adapter.safetensors"


def pool_tokens(tokens: torch.Tensor, pool: int) -> torch.Tensor:
    """Average the `pool` x `pool` neighbours of a square grid: tokens (B, N, D), row by row, -> (B, N / pool^2, D).

    Raises:
        TriptychError: N is no square number, or `pool` does not divide the square's side.
    """
    if pool == 1:
        return tokens
    count = tokens.shape[1]
    side = math.isqrt(count)
    if side**2 != count:
        raise TriptychError(f"connector.pool: {count} vision tokens are no square grid (is a class token among them?)")
    if side % pool:
        raise TriptychError(f"connector.pool: {pool} does not divide {side}, the side of the grid of vision tokens")
    grid = tokens.unflatten(1, (side // pool, pool, side // pool, pool))
    return grid.mean((2, 4)).flatten(1, 2)


class Mlp(nn.Module):
    """Linear, GELU, linear: LLaVA-1.5's "mlp2x_gelu" (Liu et al., arXiv 2310.03744), with LLaVA's tensor names."""

    def __init__(self, inputs: int, outputs: int, pool: int = 1):
        super().__init__()
        self.pool = pool
        self.linear_1 = nn.Linear(inputs, outputs)
        self.linear_2 = nn.Linear(outputs, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Vision tokens (B, N, D) -> language-model tokens (B, N / pool^2, H)."""
        return self.linear_2(functional.gelu(self.linear_1(pool_tokens(features, self.pool))))


class Linear(nn.Linear):
    """One linear layer, vision tokens (B, N, D) -> language-model tokens (B, N, H), as in the first LLaVA."""

    pool = 1


def build_connector(settings: Connector, inputs: int, outputs: int, seed: int) -> nn.Module:
    """A fresh connector in fp32; its weights depend on `seed` alone. It says in `pool` what it pools."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Linear(inputs, outputs) if settings.kind == "linear" else Mlp(inputs, outputs, settings.pool or 1)


def add_lora(model: PreTrainedModel, settings: Lora, seed: int) -> nn.Module:
    """Wrap a language model with fresh LoRA adapters in fp32; their weights depend on `seed` alone.

    Raises:
        TriptychError: the model has no layer of a name in `lora.target_modules`.
    """
    layers = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if unknown := set(settings.target_modules) - layers:
        raise TriptychError(
            f"lora.target_modules: the language model has no layer {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(layers))}"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config, autocast_adapter_dtype=True)


class VisionLanguageModel(nn.Module):
    """Connector and language model, fed with cached vision features.

    Attributes:
        blind: True where no image is shown; then no vision features are needed.
    """

    def __init__(self, connector: nn.Module, language_model: nn.Module, blind: bool = False):
        super().__init__()
        self.connector = connector
        self.language_model = language_model
        self.blind = blind

    @property
    def has_lora(self) -> bool:
        """True when the language model carries adapters."""
        return hasattr(self.language_model, "peft_config")

    @property
    def decoder(self) -> nn.Module:
        """The stack of decoder layers, adapters included, without the output head."""
        model = self.language_model.get_base_model() if self.has_lora else self.language_model
        return model.model

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Text embeddings (..., H) of token ids (...)."""
        return self.language_model.get_input_embeddings()(token_ids)

    def image_tokens(self, features: torch.Tensor) -> int:
        """How many tokens a picture of these features (B, N, D) takes in the language model's input.

        Raises:
            TriptychError: the connector cannot pool so many vision tokens.
        """
        return pool_tokens(features[:1], self.connector.pool).shape[1]

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Vision features (B, N, D) -> image tokens (B, `image_tokens`, H) in the language model's dtype."""
        return self.connector(features).to(self.language_model.get_input_embeddings().weight.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output head on hidden states (..., H) -> float32 logits (..., V)."""
        return self.language_model.get_output_embeddings()(hidden).float()

    def answer_logits(self, batch: Batch, image: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (T, V) that predict the batch's T answer tokens; no other logits are computed.

        Args:
            batch: packed samples.
            image: the batch's image tokens, where they have been projected already.
        """
        embeddings = self.embed(batch.tokens).clone()
        if not self.blind:
            image = self.project(batch.features) if image is None else image
            embeddings[batch.image_rows[:, None], batch.image_columns] = image
        if is_blockwise(self.decoder):
            # The mask stands in the blocks; without one of its shape, transformers would make a causal one.
            shown = {"attention_mask": embeddings.new_zeros(1, 1, 1, 1)}
            shown["blocks"] = find_blocks(batch, self.decoder, embeddings.dtype)
        else:
            allowed = batch.attention_mask()
            lowest = torch.finfo(embeddings.dtype).min
            shown = {"attention_mask": torch.zeros_like(allowed, dtype=embeddings.dtype).masked_fill(~allowed, lowest)}
        hidden = self.decoder(
            inputs_embeds=embeddings, position_ids=batch.positions, use_cache=False, **shown
        ).last_hidden_state
        return self.logits(hidden[batch.target_rows, batch.target_columns])


def trained_state(model: VisionLanguageModel) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors that a checkpoint holds, per file."""
    state = {CONNECTOR_FILE: dict(model.connector.state_dict())}
    if model.has_lora:
        state[ADAPTER_FILE] = get_peft_model_state_dict(model.language_model)
    return {
        file: {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
        for file, tensors in state.items()
    }


def save_trained(model: VisionLanguageModel, folder: Path) -> list[str]:
    """Write the checkpoint's tensor files into `folder`; gives their names."""
    state = trained_state(model)
    for file, tensors in state.items():
        save_file(tensors, folder / file)
    return sorted(state)


def load_trained(model: VisionLanguageModel, folder: Path, connector: bool = True) -> None:
    """Load a checkpoint's tensors; the model must have exactly the same ones.

    Args:
        model: that takes them.
        folder: of the checkpoint.
        connector: load the connector's, too, and not the adapters' alone.

    Raises:
        TriptychError: a tensor is missing, surplus or of another shape; the message names it.
    """
    expected = trained_state(model)
    if not connector:
        del expected[CONNECTOR_FILE]
    for file, tensors in expected.items():
        path = folder / file
        if not path.is_file():
            raise TriptychError(f"{path}: the parent checkpoint has no such file; its stage must be run again")
        found = load_file(path)
        faults = [f"{name} is missing" for name in tensors if name not in found]
        faults += [f"{name} is not part of this model" for name in found if name not in tensors]
        faults += [
            f"{name} has shape {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in tensors.items()
            if name in found and found[name].shape != tensor.shape
        ]
        if faults:
            raise TriptychError(f"{path}: {'; '.join(faults)}; the parent was trained with other settings")
        if file == CONNECTOR_FILE:
            model.connector.load_state_dict(found, strict=True)
        else:
            set_peft_model_state_dict(model.language_model, found)
