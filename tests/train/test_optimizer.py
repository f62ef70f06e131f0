"""Learning rates, their schedules and weight decay, each part with its own."""

import pytest
from trainings import lora_model, run, same, stage, weights
from triptych.config.stages import Stage
from triptych.train.optimizer import learning_rate_factor, make_optimiser
from triptych.train.parameters import set_trainable


def test_every_part_has_its_own_rate_decay_and_schedule():
    settings = Stage(
        data="toy",
        train=["connector", "lora"],
        learning_rate={"connector": 1e-3, "lora": 1e-4},
        weight_decay={"connector": 0.1, "lora": 0.0},
        warmup={"connector": 0.5, "lora": 0.0},
        schedule={"connector": "linear", "lora": "constant"},
        epochs=1,
    )
    model = lora_model()
    trained = set_trainable(model, settings.train)
    optimiser, schedule = make_optimiser(trained, settings, steps=10)
    by_part = dict(zip(("connector", "lora"), optimiser.param_groups, strict=True))
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(trained)
    assert any(parameter is model.connector.linear_1.weight for parameter in by_part["connector"]["params"])
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.step()
    connector, lora = zip(*rates, strict=True)
    assert connector == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3, 8e-4, 6e-4, 4e-4, 2e-4])
    assert lora == pytest.approx([1e-4] * 10)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_every_schedule_rises_first(kind):
    factors = [learning_rate_factor(step, 100, 0.1, kind) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0 == max(factors)
    assert factors[-1] == 1.0 if kind == "constant" else factors[-1] < 0.02
    assert factors[55] == pytest.approx({"cosine": 0.5, "linear": 0.5, "constant": 1.0}[kind], abs=0.01)


def test_one_value_is_that_value_for_every_part(samples, features, prompt):
    results = []
    for values in (0.01, {"connector": 0.01, "lora": 0.01}):
        model = lora_model(dropout=0.1)
        run(model, samples, features, prompt, stage(("connector", "lora"), weight_decay=values, warmup=values))
        results.append(weights(model))
    assert same(*results)


def test_the_learning_rate_rises_and_falls():
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0) and max(factors) == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5, abs=0.01) and factors[-1] < 0.01
    assert learning_rate_factor(0, 1, 0.0) == 1.0
