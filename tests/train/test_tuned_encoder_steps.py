"""A trained vision encoder in all steps behind its training: handed on, asked, probed, occluded."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_command import BOTH, LORA, inputs, steps, tensors  # noqa: F401  (fixtures)
from trainings import same
from triptych.config.jobs import ProbeJob
from triptych.config.stages import Connector, Stage
from triptych.data.questions import load_questions
from triptych.errors import TriptychError
from triptych.evaluate import representations
from triptych.evaluate.gold import gold_logprobs
from triptych.features.store import Features, Pixels
from triptych.io.manifest import read_json
from triptych.model import checkpoint
from triptych.model.language_model import load_prompt, load_tokenizer
from triptych.model.tokens import prompt_tokens, tokenise
from triptych.model.tower import VISION_ADAPTER_FILE, VISION_FILE

FILE = VISION_FILE
SEEING = {"train": ["connector", "vision_encoder"], "epochs": 1, "vision": {"blocks": 1, "crop": 0.1}}
SEEING["learning_rate"] = {"connector": 1e-2, "vision_encoder": 1e-3}
CPU = torch.device("cpu")


def base_of(inputs):  # noqa: F811
    features = Features(inputs / "features")
    identity = features.hidden_size, features.encoder, features.manifest["dtype"]
    return features, checkpoint.Base(inputs / "language_model", *identity, inputs / "vision_encoder")


def test_adapters_of_the_encoder_are_handed_on_and_asked(steps, inputs):  # noqa: F811
    run_stage, run_predict = steps
    first = run_stage("first", {**BOTH, "select": "best", "epochs": 2}, vision_target_modules=["q_proj", "v_proj"])
    child = run_stage("child", {"train": ["connector"], "learning_rate": {"connector": 1e-2}, "epochs": 1}, first)
    names = {"adapter.safetensors", "connector.safetensors", VISION_ADAPTER_FILE}
    assert set(tensors(first)) == set(tensors(child)) == names
    assert same(tensors(first)[VISION_ADAPTER_FILE], tensors(child)[VISION_ADAPTER_FILE])
    assert read_json(child)["lora"]["vision_target_modules"] == ["q_proj", "v_proj"]
    check_that_it_is_asked(child, inputs, run_predict)


@pytest.mark.parametrize("after", [{"train": []}, LORA, {**BOTH, "init": "random"}, SEEING])
def test_a_trained_encoder_is_handed_on_and_asked(steps, inputs, after):  # noqa: F811
    run_stage, run_predict = steps
    first = run_stage("first", {**SEEING, "select": "best", "epochs": 2})
    child = run_stage("child", after, first)
    found, parent = tensors(child), tensors(first)
    assert set(found) == {*parent, *(["adapter.safetensors"] if "lora" in after["train"] else [])}
    frozen = "vision_encoder" not in after["train"]
    assert same(found[FILE], parent[FILE]) == frozen
    assert (child.parent / FILE).samefile(first.parent / FILE) == frozen, "one that was frozen takes no space"
    assert FILE in read_json(child)["files"] and read_json(child)["parameters"]["vision_encoder"]["frozen"]
    check_that_it_is_asked(child, inputs, run_predict)
    model = checkpoint.load(base_of(inputs)[1], child, torch.float32, CPU)
    assert same(dict(model.vision.network.state_dict()), found[FILE])


def check_that_it_is_asked(child, inputs, run_predict):  # noqa: F811
    """Answers are to what the trained encoder sees, computed here as stored features of it would be."""
    features, base = base_of(inputs)
    model = checkpoint.load(base, child, torch.float32, CPU)
    rows = load_questions(inputs / "data", "shared", "test")
    prompt = prompt_tokens(load_tokenizer(base.language_model), load_prompt(base.language_model))
    pixels = Pixels(features, inputs / "data", inputs / "vision_encoder")
    tower, model.vision = model.vision, None
    with torch.no_grad():
        expected = {
            name: gold_logprobs(model, tokenise(rows, prompt), read, prompt, "fp32")
            for name, read in (("trained", lambda names: tower(pixels(names)).bfloat16()), ("base", features))
        }
    asked = run_predict(child, "test")
    assert [row["gold_logprob"] for row in asked] == pytest.approx(expected["trained"], abs=1e-4)
    assert [row["gold_logprob"] for row in asked] != pytest.approx(expected["base"], abs=1e-4)


def test_all_views_show_what_the_trained_encoder_sees(steps):  # noqa: F811
    run_stage, run_predict = steps
    first = run_stage("first", SEEING)
    answers = {view: run_predict(first, view) for view in ("held-out", "swapped", "blank")}
    chances = {view: [row["logprob"] for row in rows] for view, rows in answers.items()}
    assert len({tuple(values) for values in chances.values()}) == 3
    asked = {}
    for row in answers["blank"]:
        asked.setdefault(row["question"], set()).add(row["prediction"])
    assert all(len(given) == 1 for given in asked.values())


def test_a_checkpoint_is_restored_where_nothing_has_changed(steps, capsys):  # noqa: F811
    run_stage, _ = steps
    first = run_stage("first", SEEING)
    before = tensors(first)
    for path in first.parent.glob("*.*"):
        path.unlink()
    run_stage("first", SEEING)
    assert "its checkpoint is restored" in capsys.readouterr().out
    assert all(same(tensors(first)[name], before[name]) for name in before)


def test_probes_read_the_trained_encoder(steps, inputs):  # noqa: F811
    run_stage, _ = steps
    features, base = base_of(inputs)
    first = run_stage("first", SEEING)
    pixels = Pixels(features, inputs / "data", inputs / "vision_encoder")
    images = [row["image_id"] for row in load_questions(inputs / "data", "shared", "test")][:5]
    model = checkpoint.load(base, first, torch.float32, CPU)
    for layer in (None, "last"):
        job = ProbeJob(representation="first", seed=4, connector=Connector(), probe={"seeds": 1}, layer=layer)
        [(split, found)] = representations.read(job, [first], base, pixels, images, 16)
        assert split == "shared"
        if layer is None:
            with torch.no_grad():
                expected = model.project(pixels(images)).mean(1).numpy()
            assert np.allclose(found, expected, atol=1e-5)
        else:
            assert np.isfinite(found).all()


def test_a_damaged_encoder_is_refused(steps, inputs):  # noqa: F811
    run_stage, _ = steps
    first = run_stage("first", SEEING)
    path = first.parent / FILE
    found = load_file(path)
    found.pop(next(iter(found)))
    save_file(found, path)
    with pytest.raises(TriptychError, match=r"vision_encoder\.safetensors: differs from the hash"):
        run_stage("child", LORA, first)


def test_the_job_of_a_stage_without_it_is_written_as_before():
    plain = Stage(data="toy", train=["connector"], learning_rate={"connector": 1e-2}, epochs=1)
    assert "vision" not in json.loads(plain.model_dump_json())
