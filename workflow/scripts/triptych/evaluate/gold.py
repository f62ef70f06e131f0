"""What a model thinks of the gold answers: their log-probabilities, teacher-forced, whichever answer it gives itself.

An answer is right or wrong; the probability of the right one shows smaller differences between models.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from triptych.evaluate.generate import ReadFeatures
from triptych.model.architectures import context_tokens
from triptych.model.attention import row_tokens
from triptych.model.packing import pack, split_by_image
from triptych.model.tokens import PromptTokens, Sample
from triptych.model.vlm import VisionLanguageModel
from triptych.utils.device import mixed_precision

PASS_TOKENS = 2048  # of one forward pass: bounds the memory of logits, which vocabularies of 150,000 tokens make large


@torch.inference_mode()
def gold_logprobs(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    features: ReadFeatures,
    prompt: PromptTokens,
    precision: str,
) -> list[float | None]:
    """Compute the log-probability of each sample's answer, its end token included, in the order of `samples`.

    Natural logarithm of the probability of the whole answer, as a sum over its tokens. The prompt is that of training
    and of `generate`; the questions of an image are computed together. A model that is made ready for answers at fixed
    shapes cannot do it any more.

    Args:
        model: in evaluation mode, on its device.
        samples: with their gold answers; their `question_id`s differ.
        features: function from image ids to vision features (B, N, D); a blind model's is not called.
        prompt: fixed text.
        precision: of the forward pass.

    Returns:
        The log-probabilities; None for an answer that does not fit into the model's context.
    """
    device = next(model.parameters()).device
    image_tokens = 0 if model.blind else model.image_tokens(features([samples[0].image_id]))
    prefix, limit = len(prompt.before_image) + image_tokens, context_tokens(model.decoder.config)
    fitting = [sample for sample in samples if prefix + len(sample.text) <= limit]
    found: dict[str, float] = {}
    for piece in split_by_image(fitting, prefix, PASS_TOKENS):
        batch = pack(piece, features, prompt, image_tokens, row_tokens(model.decoder)).to(device)
        with mixed_precision(precision, device):
            logits = model.answer_logits(batch)
        of_tokens = -functional.cross_entropy(logits, batch.targets, reduction="none").double()
        sums = torch.zeros(len(piece), dtype=torch.double, device=device)
        sums.index_add_(0, batch.target_samples, of_tokens)
        found.update(zip((sample.question_id for sample in piece), sums.tolist(), strict=True))
    return [found.get(sample.question_id) for sample in samples]
