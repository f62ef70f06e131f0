"""The parts of a model: which of them train, and how many parameters they have."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from triptych.errors import TriptychError
from triptych.model.four_bits import in_four_bits, numbers
from triptych.model.tower import LORA
from triptych.model.vlm import VisionLanguageModel

TOWER = "vision.network."  # begins names of the vision encoder's weights


def part_of(parameter_name: str) -> str:
    """Name the part that a parameter belongs to: connector, regularisation, vision_encoder, lora or language_model."""
    if LORA in parameter_name:
        return "lora"
    for start, part in (("connector", "connector"), ("regularisation", "regularisation"), ("vision", "vision_encoder")):
        if parameter_name.startswith(f"{start}."):
            return part
    return "language_model"


def set_trainable(
    model: VisionLanguageModel, parts: Sequence[str], blocks: int | None = None
) -> dict[str, nn.Parameter]:
    """Make exactly `parts` trainable; gives their parameters by name. A language model that trains is `tuned`.

    Args:
        model: to train.
        parts: names of parts; of the vision encoder, only what tokens depend on trains.
        blocks: of the vision encoder, only these many train, the last ones; None for all.

    Raises:
        TriptychError: a part has no parameters in this model, or the language model has adapters, through which its
            own weights cannot train.
    """
    if "language_model" in parts and model.has_lora:
        raise TriptychError(
            "the stage trains 'language_model', but an earlier one has trained LoRA on it; train the language model "
            "first, or start from a checkpoint without LoRA"
        )
    if "language_model" in parts and in_four_bits(model.network):
        raise TriptychError("the stage trains 'language_model', whose weights are in 4 bits; train lora instead")
    model.tuned |= "language_model" in parts
    if "vision_encoder" in parts and model.vision is None:
        raise TriptychError("the stage trains 'vision_encoder', but the model was built without one of its own")
    if "vision_encoder" in parts and model.vision.adapted:
        raise TriptychError(
            "the stage trains 'vision_encoder', which has adapters (lora.vision_target_modules); train one of the two"
        )
    reached: set[str] = set()
    if model.vision:
        model.vision.tuned |= "vision_encoder" in parts
        reached = model.vision.trainable(blocks)
    for name, parameter in model.named_parameters():
        chosen = not name.startswith(TOWER) or name.removeprefix(TOWER) in reached
        parameter.requires_grad_(part_of(name) in parts and chosen)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for part in parts:
        if not any(part_of(name) == part for name in trained):
            raise TriptychError(f"the stage trains '{part}', but the model has no such part")
    return trained


def count_parameters(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, dict[str, int]]:
    """Count the trained and the frozen parameters of each part."""
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in parameters:
        state = "trained" if parameter.requires_grad else "frozen"
        part = counts.setdefault(part_of(name), {"trained": 0, "frozen": 0})
        part[state] += numbers(parameter)
    return counts


def parameter_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Format the counts of `count_parameters` as aligned text."""
    rows = [("part", "trained", "frozen")]
    for part, states in counts.items():
        rows.append((part.replace("_", " "), f"{states['trained']:,}", f"{states['frozen']:,}"))
    return "\n".join(f"{name:<14} {trained:>15} {frozen:>15}" for name, trained, frozen in rows)
