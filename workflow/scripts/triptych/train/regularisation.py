"""Regularisation of the connector: a cosine term beside the loss, and the head that the term needs."""

import torch
from torch import nn
from torch.nn import functional

from triptych.config.stages import Regularisation
from triptych.model.connector import Mlp, pool_tokens
from triptych.model.vlm import VisionLanguageModel


def build_head(
    settings: Regularisation, model: VisionLanguageModel, features: torch.Tensor | None, seed: int
) -> nn.Module | None:
    """Build the head that a term needs, in fp32 on the model's device; None without a term.

    Its weights depend on `seed` alone. It is no part of the model: it trains with the connector for one stage, and no
    checkpoint holds it.

    Args:
        settings: which term.
        model: whose connector is regularised.
        features: any vision features (B, N, D), or pixels, for the width D; not used without a term.
        seed: of the initial weights.
    """
    if not settings.active:
        return None
    embeddings = model.language_model.get_input_embeddings().weight
    hidden = embeddings.shape[1]
    with torch.no_grad():
        width = model.see(features[:1].to(embeddings.device)).shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if settings.kind == "reconstruct":
            return nn.Linear(hidden, width).to(embeddings.device)
        return Mlp(hidden, hidden).to(embeddings.device)


def cosine_term(
    kind: str,
    model: VisionLanguageModel,
    head: nn.Module,
    features: torch.Tensor,
    image: torch.Tensor,
    shown: torch.Tensor,
) -> torch.Tensor:
    """Compute 1 - cos, as a mean over an image's tokens and a sum over images.

    In self-distillation, gradients flow into both sides.

    Args:
        kind: `reconstruct` or `self-distillation`.
        model: whose connector is regularised.
        head: from `build_head`.
        features: vision features (B, N, D).
        image: their image tokens (B, I, H), with the graph that made them.
        shown: (B,): False for an empty slot, which counts nothing.
    """
    image = image.float()
    target = pool_tokens(features.float(), model.connector.pool) if kind == "reconstruct" else image
    terms = (1 - functional.cosine_similarity(head(image).float(), target.float(), dim=-1)).mean(1)
    return torch.where(shown, terms, 0).sum()
