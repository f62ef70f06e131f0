"""The loss as a textbook computes it, without any code of packing: what batches are compared with."""

import torch
from torch.nn import functional


def unpacked_loss(model, samples, features, prompt):
    """The loss as a textbook writes it: each question alone, -100 on image, prompt and padding, no packing code."""
    total, count = 0.0, 0
    for sample in samples:
        image = model.project(features([sample.image_id]))
        text = torch.tensor([list(sample.question + sample.answer)])
        before = model.embed(torch.tensor([list(prompt.before_image)]))
        embeddings = torch.cat([before, image, model.embed(text)], dim=1)
        labels = torch.full((1, embeddings.shape[1]), -100)
        labels[0, -len(sample.answer) :] = torch.tensor(sample.answer)
        logits = model.language_model(inputs_embeds=embeddings).logits
        total = total + functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
        count += len(sample.answer)
    return total / count
