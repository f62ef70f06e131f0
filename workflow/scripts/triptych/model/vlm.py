"""The vision-language model: connector, language model, optional LoRA; it starts from stored vision features.

Where the vision encoder trains, or has trained, it is a part of the model, which then starts from pixels.
"""

import warnings

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from triptych.config.stages import Lora
from triptych.errors import TriptychError
from triptych.model.architectures import final_softcap
from triptych.model.attention import find_blocks, is_blockwise, layer_masks
from triptych.model.connector import pool_tokens
from triptych.model.flex import block_masks, is_flex
from triptych.model.packing import TEXT, Batch
from triptych.model.tower import VisionTower


def add_lora(model: PreTrainedModel, settings: Lora, seed: int) -> nn.Module:
    """Wrap a language model with fresh LoRA adapters (Hu et al., arXiv 2106.09685), or a variant of them, in fp32.

    Their weights depend on `seed` alone.

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
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers by a former name; the first line of every log would say so.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(model, config, autocast_adapter_dtype=True)


def has_dora(layer: nn.Module) -> bool:
    """Tell whether a layer, or one inside it, has an adapter of DoRA."""
    return any(isinstance(module, LoraLayer) and module.lora_magnitude_vector for module in layer.modules())


class VisionLanguageModel(nn.Module):
    """Connector and language model.

    Attributes:
        blind: no image is shown, and no vision features are used.
        tuned: the language model's own weights are not the base's, but trained.
        vision: the vision encoder, where its weights train or have trained; else None, and features are given.
    """

    def __init__(self, connector: nn.Module, language_model: nn.Module, blind: bool = False):
        super().__init__()
        self.connector = connector
        self.language_model = language_model
        self.blind = blind
        self.tuned = False
        self.vision: VisionTower | None = None

    @property
    def has_lora(self) -> bool:
        """True when the language model has adapters."""
        return hasattr(self.language_model, "peft_config")

    @property
    def network(self) -> PreTrainedModel:
        """The language model as transformers has it, adapters included."""
        return self.language_model.get_base_model() if self.has_lora else self.language_model

    @property
    def decoder(self) -> nn.Module:
        """The stack of decoder layers, adapters included, without the output head."""
        return self.network.model

    @property
    def tuning(self) -> bool:
        """True when the language model's own weights train."""
        return any(weight.requires_grad for weight in self.own_weights().values())

    def own_weights(self) -> dict[str, nn.Parameter]:
        """Give the language model's weights without adapters, by transformers' names; tied ones once."""
        weights = self.network.named_parameters()
        return {name.replace(".base_layer.", "."): weight for name, weight in weights if ".lora_" not in name}

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Look up text embeddings (..., H) of token ids (...)."""
        return self.language_model.get_input_embeddings()(token_ids)

    def see(self, images: torch.Tensor) -> torch.Tensor:
        """Give vision features (B, N, D): of pixels (B, 3, S, S), by the model's own encoder; else they are given."""
        return images if self.vision is None or images.dim() == 3 else self.vision(images)

    @torch.no_grad()
    def image_tokens(self, features: torch.Tensor) -> int:
        """Count the tokens that an image of these features (B, N, D), or pixels, takes in the language model's input.

        Raises:
            TriptychError: the connector cannot pool N vision tokens.
        """
        first = features[:1].to(next(self.parameters()).device)
        return pool_tokens(self.see(first), self.connector.pool).shape[1]

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Project vision features (B, N, D), or pixels, to image tokens (B, `image_tokens`, H).

        They are in the language model's dtype.
        """
        return self.connector(self.see(features).float()).to(self.language_model.get_input_embeddings().weight.dtype)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the output head to hidden states (..., H); gives float32 logits (..., V)."""
        logits = self.language_model.get_output_embeddings()(hidden).float()
        softcap = final_softcap(self.language_model.config)
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def answer_logits(self, batch: Batch, image: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the logits (T, V) that predict the batch's T answer tokens, and no others.

        Args:
            batch: packed samples.
            image: the batch's image tokens (B, I, H), where they are projected already.

        Returns:
            The logits; those of empty slots mean nothing.

        Raises:
            TriptychError: the batch was packed for images of another number of tokens.
        """
        embeddings = self.embed(batch.tokens)
        if not self.blind:
            image = self.project(batch.image_features()) if image is None else image
            if image.shape[1] != batch.image_tokens:
                raise TriptychError(f"images have {image.shape[1]} tokens, the batch has room for {batch.image_tokens}")
            embeddings = insert(image, batch.image_index, embeddings)
        if is_blockwise(self.decoder):
            # Masks are in the blocks; without a mask argument, transformers would build a causal one.
            shown = {"attention_mask": embeddings.new_zeros(1, 1, 1, 1)}
            shown["blocks"] = find_blocks(batch, self.decoder, embeddings.dtype)
        elif is_flex(self.decoder):
            shown = {"attention_mask": block_masks(self.decoder.config, batch)}
        else:
            masks = layer_masks(self.decoder.config, batch.attention_mask(), batch.distance(), embeddings.dtype)
            shown = {"attention_mask": masks}
        hidden = self.decoder(
            inputs_embeds=embeddings, position_ids=batch.positions, use_cache=False, **shown
        ).last_hidden_state
        return self.logits(hidden[batch.target_rows, batch.target_columns])


def insert(image: torch.Tensor, image_index: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Put image tokens (B, I, H) where `image_index` (R, L) names them, in place of text embeddings (R, L, H)."""
    taken = image.flatten(0, 1).index_select(0, image_index.clamp(min=0).flatten()).view_as(embeddings)
    return torch.where((image_index == TEXT)[..., None], embeddings, taken)
