"""Short trainings of the toy model, as several test files need them."""

import torch
from conftest import make_model
from triptych.config.stages import Connector, Lora, Stage
from triptych.model.checkpoint import trained_state
from triptych.model.vlm import add_lora
from triptych.train.autosave import Autosaver
from triptych.train.trainer import train

CONNECTORS = [Connector(), Connector(kind="linear"), Connector(kind="pooled-mlp", pool=2)]
TERMS = ["reconstruct", "self-distillation"]
FP32 = "fp32"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FULL_LORA = Lora(rank=8, alpha=16, dropout=0.0, target_modules=ALL_LINEAR)
KEY = ["fold0", "2"]


def stage(parts=("connector",), rate=1e-2, **settings):
    settings = {"data": "toy", "epochs": 1, "batch_size": 4, **settings}
    return Stage(train=list(parts), learning_rate=dict.fromkeys(parts, rate), **settings)


def run(model, samples, features, prompt, settings, autosaver=None, validation=None):
    """Train; gives the metrics of all epochs."""
    validation = samples if validation is None else validation
    return list(train(model, samples, validation, features, prompt, settings, FP32, 0, KEY, autosaver))


def lora_model(connector=None, dropout=0.0, **variant):
    model = make_model(connector=connector)
    model.language_model = add_lora(model.language_model, Lora(rank=2, alpha=4, dropout=dropout, **variant), seed=5)
    return model


def weights(model):
    return {name: tensor.clone() for part in trained_state(model).values() for name, tensor in part.items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def no_features(image_ids):
    raise AssertionError("vision features were read")


class InterruptedAfterCalls(Autosaver):
    """An autosaver that is told to stop after some calls."""

    def __init__(self, folder, calls):
        super().__init__(folder, {}, 10)
        self.calls = calls

    def save_if_due(self, state_dict, place):
        self.calls -= 1
        if self.calls == 0:
            self._signal = "SIGTERM"
        super().save_if_due(state_dict, place)
