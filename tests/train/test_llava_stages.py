"""The three arms of arXiv 2402.16832 on a tiny LLaVA: trained, resumed, asked and probed by the steps' own commands."""

import numpy as np
import pytest
import torch
from conftest import make_toy_data
from llavas import PROMPT, prepare_llava, write_llava
from safetensors.torch import load_file
from test_command import BOTH, steps, tensors  # noqa: F401  (a fixture)
from trainings import same
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from triptych.config.jobs import ProbeJob
from triptych.config.stages import Connector
from triptych.data.image_table import ImageTable
from triptych.data.questions import load_questions
from triptych.evaluate import representations
from triptych.features import encode
from triptych.features.store import Features
from triptych.io.manifest import read_json
from triptych.model import checkpoint
from triptych.model.connector import CONNECTOR_FILE
from triptych.model.llava import PROJECTOR
from triptych.train.autosave import EXIT_STATUS, Autosaver

ORIGINAL = {"train": []}
PROJECTION = {"train": ["connector"], "learning_rate": {"connector": 1e-2}, "epochs": 1}
END_TO_END = BOTH


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What trainings read: toy data, and a LLaVA taken apart, whose features are stored in fp32."""
    folder = tmp_path_factory.mktemp("llava") / "inputs"
    write_llava(folder / "llava")
    prepare_llava(folder, folder / "llava")
    make_toy_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        arguments = [
            f"--data={folder / 'data'}",
            f"--encoder={folder / 'vision_encoder'}",
            '--settings={"dtype": "fp32"}',
        ]
        patch.setattr("sys.argv", ["encode", *arguments, f"--out={folder / 'features'}"])
        encode.main()
    return folder


@pytest.fixture
def base(inputs):
    features = Features(inputs / "features")
    return features, checkpoint.Base(inputs / "language_model", features.hidden_size, features.encoder)


def test_the_original_answers_as_plain_transformers_does(steps, inputs):  # noqa: F811
    run_stage, run_predict = steps
    original = run_stage("original", ORIGINAL)
    assert same(tensors(original)[CONNECTOR_FILE], load_file(inputs / "language_model" / PROJECTOR))
    assert tensors(original).keys() == {CONNECTOR_FILE}
    asked = {row["question_id"]: row for row in run_predict(original, "test")}
    rows, table = load_questions(inputs / "data", "shared", "test"), ImageTable(inputs / "data" / "images")
    plain = LlavaForConditionalGeneration.from_pretrained(inputs / "llava", dtype=torch.float32)
    processor, places = LlavaProcessor.from_pretrained(inputs / "llava"), {n: i for i, n in enumerate(table.image_ids)}
    found = []
    for row in rows:
        [picture] = table.images([places[row["image_id"]]])
        inputs_ = processor(images=picture, text=PROMPT.replace("{question}", row["question"]), return_tensors="pt")
        tokens = plain.generate(**inputs_, max_new_tokens=4, do_sample=False)[0, inputs_["input_ids"].shape[1] :]
        found.append(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
        assert asked[row["question_id"]]["prediction"] == found[-1]
    assert len(set(found)) > 3, "answers must differ for the comparison to mean something"


@pytest.mark.parametrize("settings", [PROJECTION, END_TO_END], ids=["projection", "end-to-end"])
def test_the_arms_start_from_the_original_and_name_it(steps, inputs, settings):  # noqa: F811
    run_stage, run_predict = steps
    original = run_stage("original", ORIGINAL)
    arm = run_stage("arm", settings, original)
    manifests = [read_json(original), read_json(arm)]
    named = {"projector": read_json(inputs / "language_model" / "manifest.json")["files"][PROJECTOR]}
    assert [manifest["llava"] for manifest in manifests] == [named, named]
    assert [list(stage) for stage in manifests[1]["stages"]] == [["original"], ["arm"]]
    found, before = tensors(arm), tensors(original)[CONNECTOR_FILE]
    change = [(found[CONNECTOR_FILE][name] - before[name]).norm() / before[name].norm() for name in before]
    assert all(0 < one < 0.9 for one in change), "it trains on from the projector, and not from a new connector"
    adapters = {name.split(".lora_")[0] for name in found.get("adapter.safetensors", {})}
    layers = [
        f"base_model.model.model.layers.{layer}.self_attn.{part}" for layer in (0, 1) for part in ("q_proj", "v_proj")
    ]
    assert adapters == ({*layers} if "lora" in settings["train"] else set())
    asked = [
        [row["gold_logprob"] for row in run_predict(one, "test", folder=one.parent.name)] for one in (original, arm)
    ]
    assert asked[0] != pytest.approx(asked[1], abs=1e-3)


def test_an_interrupted_first_stage_ends_with_the_same_bytes(steps, monkeypatch):  # noqa: F811
    run_stage, _ = steps
    whole = run_stage("end/whole", END_TO_END)
    calls = iter(range(100))
    due = Autosaver.save_if_due

    def stop_at_the_third(self, state_dict, place):
        if next(calls) == 2:
            self._signal = "SIGTERM"
        due(self, state_dict, place)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Autosaver, "save_if_due", stop_at_the_third)
        run_stage("end/again", END_TO_END)
    assert stopped.value.code == EXIT_STATUS
    again = run_stage("end/again", END_TO_END)
    for path in sorted(whole.parent.glob("*.*")):
        assert path.read_bytes() == (again.parent / path.name).read_bytes(), path.name
    assert len(list(whole.parent.glob("*.safetensors"))) == 2


def test_probes_read_before_and_behind_the_projection(steps, inputs, base):  # noqa: F811
    run_stage, _ = steps
    original = run_stage("original", ORIGINAL)
    arm = run_stage("arm", END_TO_END, original)
    features, models = base
    images = [row["image_id"] for row in load_questions(inputs / "data", "shared", "test")][:5]
    read = {}
    for name, checkpoints in {
        "pre-projection": [], "random-connector": [], "original": [original], "arm": [arm],
    }.items():  # fmt: skip
        for layer in (None, *(["last"] if name != "pre-projection" else [])):
            job = ProbeJob(representation=name, seed=4, connector=Connector(), probe={"seeds": 1}, layer=layer)
            [(_, found)] = representations.read(job, checkpoints, models, features, images, 16)
            assert np.isfinite(found).all()
            read[name, layer] = found
    plain = LlavaForConditionalGeneration.from_pretrained(inputs / "llava", dtype=torch.float32)
    with torch.inference_mode():
        projected = plain.model.multi_modal_projector(features(images).float()).mean(1)
    assert np.allclose(read["original", None], projected.numpy(), atol=1e-5)
    for layer in (None, "last"):
        assert not np.allclose(read["original", layer], read["random-connector", layer], atol=1e-2)
        assert not np.allclose(read["original", layer], read["arm", layer], atol=1e-4)
