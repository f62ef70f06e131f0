"""What it costs, by the plan, to train a vision encoder, and to encode images by one that has trained."""

import json

import pytest
from test_plan import at, config
from triptych.commands import cost, plan
from triptych.commands.encoders import encoder_size
from triptych.config.grid import Checkpoint

ENCODERS = {
    "google/siglip-so400m-patch14-384": 4.1e8,
    "facebook/dinov2-large": 3e8,
    "openai/clip-vit-base-patch32": 8.5e7,
}


def seeing(blocks=None, stage=3, **settings):
    """The full study, a stage of which trains the vision encoder, too."""
    study = config("config")
    rates = study["stages"][stage]["learning_rate"] | {"vision_encoder": 1e-5}
    study["stages"][stage] |= {"train": list(rates), "learning_rate": rates, "vision": {"blocks": blocks}, **settings}
    return study


def test_an_encoder_that_trains_costs_a_pass_over_the_images_in_each_direction(tmp_path):
    """SigLIP base at 384 pixels: 85 million weights, 576 tokens; an image for 9.3 questions of SLAKE."""

    def flops(study, prefix="2-3"):
        return cost.training_cost(at(tmp_path, study), Checkpoint(prefix, "", 0)).flops

    plain, whole, half = flops(config("config")), flops(seeing()), flops(seeing(blocks=6))
    number, images = cost.questions(at(tmp_path, config("config")), "medical")
    learnt, asked = 5972 * 0.8 * 0.9 * 6, 5972 * 0.8 * 0.1 * 7 * cost.PREDICTION
    image = 2 * 8.5e7 * 576 * images / number
    assert number == 5972
    assert whole - plain == pytest.approx(image * (3 * learnt + asked), rel=0.01)
    assert half - plain == pytest.approx(image * (2 * learnt + asked), rel=0.01)
    # A later stage that leaves it frozen encodes images, too, and so do answers; the schedule beside it does not.
    early = seeing(stage=2)
    assert flops(early) - plain == pytest.approx(image * (learnt + asked), rel=0.01)
    answers = [cost.prediction_cost(at(tmp_path, one), "2-3").flops for one in (config("config"), early)]
    assert answers[1] - answers[0] == pytest.approx(image * 5972 / 5, rel=0.01)
    assert flops(early, "3blind") == flops(config("config"), "3blind")


@pytest.mark.parametrize(("optimizer", "size"), [("adamw", 12), ("adafactor", 4), ("adamw-8bit", 6)])
@pytest.mark.parametrize(("blocks", "share"), [(None, 1), (3, 0.25), (12, 1), (50, 1)])
def test_the_plan_says_what_memory_an_encoder_needs(tmp_path, optimizer, size, blocks, share):
    """Of 85 million weights: 4 bytes each, and of those that train 4 of the gradient, and moments."""
    study = at(tmp_path, seeing(blocks, optimizer=optimizer))
    needed = 0.085 * (4 + share * size)
    assert cost.training_gb(study, "2-3") == pytest.approx(needed)
    [line] = [line for line in plan.memory_lines(study) if line.startswith("memory      2-3:")]
    gb = f"{cost.training_gb(study, '2-3'):.1f} GB"
    assert f"{gb} of its device for the vision encoder's weights, gradients and {optimizer}" in line
    kept = 16 * 576 * 12 * 17 * 768 * 4 * share / 1e9
    assert cost.kept_gb(study, "2-3") == pytest.approx(kept, rel=0.01)
    assert f"of the encoder for its images at most {kept:.1f} GB" in line
    assert cost.training_gb(study, "1") == cost.kept_gb(study, "1") == 0


def test_adapters_on_the_encoder_cost_the_gradient_of_what_they_read(tmp_path):
    study = config("config")
    study["lora"]["vision_target_modules"] = ["q_proj"]
    study["schedules"] = [[1, 2, 3], [2, 3]]
    found = at(tmp_path, study)
    number, images = cost.questions(found, "medical")
    learnt, asked = 5972 * 0.8 * 0.9 * 6, 5972 * 0.8 * 0.1 * 7 * cost.PREDICTION
    cell, plain = Checkpoint("2-3", "", 0), at(tmp_path, config("config"))
    more = cost.training_cost(found, cell).flops - cost.training_cost(plain, cell).flops
    assert more == pytest.approx(2 * 8.5e7 * 576 * images / number * (2 * learnt + asked), rel=0.01)
    assert cost.kept_gb(found, "2-3") == pytest.approx(16 * 576 * 12 * 17 * 768 * 4 / 1e9, rel=0.01)
    assert cost.tuned(found, "2-3") == [] and cost.own_encoder(found, "1-2") is None


def test_memory_of_both_models_is_added(tmp_path):
    study = config("config")
    study["stages"][3] = {**study["stages"][3], "learning_rate": {"connector": 2e-5, "language_model": 1e-5}}
    both = study["stages"][3]["learning_rate"] | {"vision_encoder": 1e-6}
    study["stages"][3] |= {"train": list(both), "learning_rate": both}
    assert cost.training_gb(at(tmp_path, study), "2-3") == pytest.approx(22 + 0.085 * 16)
    [line] = [line for line in plan.memory_lines(at(tmp_path, study)) if line.startswith("memory      2-3:")]
    assert "23 GB of its device for the language model's and the vision encoder's weights" in line


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("google/siglip-so400m-patch14-384", 4.1e8),
        ("facebook/dinov2-large", 3e8),
        ("openai/clip-vit-base-patch32", 8.5e7),
    ],
)
def test_an_encoder_that_is_not_prepared_is_as_large_as_its_name_says(tmp_path, name, weights):
    study = seeing()
    study["models"]["vision_encoder"]["repo"] = name
    assert encoder_size(at(tmp_path, study), "2-3", 100).weights == weights


@pytest.mark.parametrize("nested", [False, True])
def test_a_prepared_encoder_is_as_large_as_its_configuration_says(tmp_path, nested):
    study = at(tmp_path, seeing())
    facts = {"hidden_size": 10, "num_hidden_layers": 3, "intermediate_size": 20}
    path = study.path("models/vision_encoder/config.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"vision_config": facts} if nested else facts))
    found = encoder_size(study, "2-3", 5)
    assert (found.weights, found.blocks, found.flops) == (3 * 800, 3, 2 * 2400 * 5)
