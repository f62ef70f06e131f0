"""What does not fit into the language model's context is one line, before anything is computed."""

import json
import shutil

import pytest
import torch
from conftest import FEATURES, PROMPT, TOKENS, make_inputs, make_model
from models_page import tiny_config
from trainings import run, stage
from triptych.config.models import FolderLanguageModel
from triptych.config.stages import Connector
from triptych.errors import TriptychError
from triptych.evaluate import predict
from triptych.features.store import Features
from triptych.model import checkpoint
from triptych.model.architectures import ARCHITECTURES, context_tokens
from triptych.model.prepare import prepare_model
from triptych.model.tokens import Sample, require_context

ROPE = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "partial_rotary_factor": 1.0}


def sample(number, question, answer):
    return Sample(f"q{number}", "image", (5,) * question, (6,) * answer)


def test_the_longest_question_its_length_and_the_limit_are_named():
    samples = [sample(0, 3, 2), sample(1, 6, 2), sample(2, 2, 5)]
    require_context(samples, 10, 18)
    require_context([], 10, 1)
    with pytest.raises(TriptychError) as caught:
        require_context(samples, 10, 16)
    assert str(caught.value).startswith(
        "question q1: 18 tokens with its image (10, with the text before it) and its answer, but the language model's "
        "context has 16; of 3 questions 2 are too long: "
    )
    # Of an answer that is yet to be given, the longest counts, not the true one.
    require_context(samples, 10, 20, new_tokens=4)
    with pytest.raises(TriptychError, match=r"q1: 20 tokens .* and evaluation.max_new_tokens \(4\), .* context has 19"):
        require_context(samples, 10, 19, new_tokens=4)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_context_is_what_the_configuration_says(kind):
    assert context_tokens(tiny_config(kind, max_position_embeddings=77)) == 77
    assert context_tokens(tiny_config(kind, 5)) == 256


def test_a_context_stretched_by_longrope_ends_where_positions_would_change():
    rope = {"rope_type": "longrope", **ROPE, **LONG}
    stretched = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=24)
    assert context_tokens(stretched) == 24
    assert context_tokens(tiny_config("llama", rope_parameters={"rope_type": "yarn", **ROPE})) == 256


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize(("room", "blind"), [(-1, False), (0, False), (0, True), (-1, True)])
def test_a_training_stops_before_its_first_step(samples, features, prompt, part, room, blind):
    model = make_model()
    longest = max(len(one.text) for one in samples)
    limit = len(prompt.before_image) + (0 if blind else TOKENS) + longest + room
    model.language_model.config.max_position_embeddings = limit
    short = [one for one in samples if len(one.text) < longest]
    parts = {"training": short, "validation": short, part: samples}
    settings = stage(["connector"])
    if blind:
        model.language_model = checkpoint.add_lora(model.language_model, checkpoint.Lora(rank=2, alpha=4), seed=5)
        settings = stage(["lora"], blind=True)
    arguments = (model, parts["training"], features, prompt, settings, None, parts["validation"])
    if room == 0:
        run(*arguments)
    else:
        with pytest.raises(TriptychError, match=rf"question q\d+: {limit + 1} tokens .* context has {limit}; of"):
            run(*arguments)


def test_answering_stops_before_its_first_question(world, tmp_path, monkeypatch):
    make_inputs(world, tmp_path)
    features = Features(tmp_path / "features")
    asked = "predict --data={0}/data --features={0}/features --language-model={0}/{1}"
    asked += " --vision-encoder={0}/vision_encoder --views test"
    for limit, language_model in ((256, "language_model"), (40, "short")):
        folder = tmp_path / language_model
        if limit == 40:
            # A folder of another study: its manifest is not taken for a file of the model.
            source = shutil.copytree(tmp_path / "language_model", tmp_path / "source")
            config = json.loads((source / "config.json").read_text()) | {"max_position_embeddings": limit}
            (source / "config.json").write_text(json.dumps(config))
            settings = FolderLanguageModel(source="folder", folder=str(source), prompt=PROMPT)
            prepare_model("language_model", settings, tmp_path, folder)
        base = checkpoint.Base(folder, FEATURES, features.encoder)
        model = checkpoint.build(base, None, Connector(), None, 0, "shared", torch.float32, torch.device("cpu"))
        facts = {"prefix": "1", "split": "shared", "seed": 0, "connector": Connector().model_dump(), **base.identity}
        checkpoint.save(model, tmp_path / f"checkpoint{limit}", facts, "")
        for new_tokens, fits in ((3, True), (37, limit == 256)):
            job = {"precision": "fp32", "max_new_tokens": new_tokens, "batch_size": 50, "limit": 3}
            out = tmp_path / f"{limit}-{new_tokens}.parquet"
            arguments = [*asked.format(tmp_path, language_model).split(), "--job", json.dumps(job), f"--out={out}"]
            arguments += [f"--checkpoint={tmp_path / f'checkpoint{limit}' / 'manifest.json'}"]
            monkeypatch.setattr("sys.argv", arguments)
            if fits:
                predict.main()
            else:
                with pytest.raises(TriptychError, match=r"max_new_tokens \(37\), .* has 40; of 3 questions 3"):
                    predict.main()
            assert out.exists() == fits and not out.with_suffix(".part.jsonl").exists()
