"""An export on its way to the hub: what is uploaded, what is printed instead, and which results its card states."""

import json

import pytest
from hub import ENDPOINT, Fault, Hub
from huggingface_hub import ModelCard, constants, get_token, snapshot_download
from test_export import prepare, save_checkpoint
from triptych.commands import export as command
from triptych.config.stages import Lora
from triptych.data.schemas import RECORD_SCHEMA
from triptych.errors import TriptychError
from triptych.evaluate.answered import write_answered
from triptych.export.push import push
from triptych.export.results import measured
from triptych.export.write import export
from triptych.io.manifest import read_json, sha256_file, write_json, write_record
from triptych.io.parquet import write_table

TOKEN = "hf_secretOfATest"


@pytest.fixture
def folder(tmp_path):
    """What is like an export, in a folder whose name needs quotes."""
    folder = tmp_path / "my exports"
    (folder / "language_model").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: other\n---\n# card\n")
    (folder / "language_model/model.safetensors").write_bytes(bytes(5000))
    return folder


@pytest.fixture(autouse=True)
def plain_http(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def test_an_export_is_uploaded_to_a_new_private_repository(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub({}, tokens=[TOKEN]) as hub:
        assert push(folder, "me/a-model") == f"uploaded: {ENDPOINT}/me/a-model/commit/{hub.commit('me/a-model')}"
        assert hub.visibility == {"me/a-model": "private"}
        got = snapshot_download("me/a-model", cache_dir=tmp_path / "cache")
        (folder / "README.md").write_text("---\nlicense: other\n---\n# changed\n")
        push(folder, "me/a-model")  # to one that is there already
        assert hub.asked("POST /api/repos/create") == 2
    names = ["README.md", "language_model/model.safetensors"]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == names
    assert (tmp_path / "cache" / got / names[1]).read_bytes() == bytes(5000)
    assert all(TOKEN.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_offline_or_without_a_token_the_command_is_printed_and_nothing_is_sent(folder, monkeypatch):
    command = f"hf upload me/a-model '{folder}' . --private"
    assert get_token() is None
    with Hub({}, tokens=[TOKEN]) as hub:
        assert (
            push(folder, "me/a-model") == f"not uploaded, because there is no token; after `hf auth login`: {command}"
        )
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        said = push(folder, "me/a-model")
    assert "HF_HUB_OFFLINE is set" in said and said.endswith(command) and TOKEN not in said
    assert hub.requests == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("POST /api/repos/create", status=403), "of an account that may write there"),
        (Fault("/commit/main", status=401), "of an account that may write there"),
        (Fault("/preupload/", status=500, times=99), "500"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_error(folder, monkeypatch, fault, said):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Hub({}, fault, tokens=[TOKEN]), pytest.raises(TriptychError) as error:
        push(folder, "me/a-model")
    line = str(error.value)
    assert (
        line.startswith("--push me/a-model: cannot be uploaded (") and said in line and "hf upload me/a-model" in line
    )
    assert "\n" not in line and TOKEN not in line


def test_without_a_hub_it_is_said_so(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(TriptychError, match=r"--push me/a-model: cannot be uploaded \(.+\); the folder is complete"):
        push(folder, "me/a-model")


@pytest.mark.parametrize("repo", ["a-model", "me/a/model", "", "me/", "../model", "me/a--b", "me/mod el", "/etc"])
def test_the_repository_is_checked_before_anything_is_written(repo, tmp_path):
    words = ["--checkpoint", "no", "--models", "no", "--out", str(tmp_path / "out"), "--push", repo]
    with pytest.raises(TriptychError, match=r"^--push: must "):
        command.main(words)
    assert list(tmp_path.iterdir()) == []


# Results in the card


@pytest.fixture
def models(world, tmp_path):
    return prepare(tmp_path / "models", {"folder": str(world / "models" / "clip")}, world / "models" / "llama")


@pytest.fixture
def trained(models, tmp_path):
    return save_checkpoint(tmp_path / "checkpoint", models, Lora(rank=2))


@pytest.fixture
def source(tmp_path):
    """As much of a checkpoint as its results are read from."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    stages = [{"2": {"data": "medical", "select": "last"}}]
    write_record(folder / "manifest.json", {"split": "fold0", "epoch": 1, "stages": stages})
    rows = [{"epoch": epoch, "validation_accuracy": epoch / 2, "validation_samples": 5} for epoch in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def change(source, **facts):
    """Change what the manifest of a checkpoint says."""
    write_record(source / "manifest.json", read_json(source / "manifest.json") | facts)


def results(source, data=(), *predictions):
    return measured(read_json(source / "manifest.json"), source, data, predictions)


def answers(path, source, data, view="held-out", right=3, of=8, cut="", inputs=None):
    """Answers of a checkpoint with their record, as a prediction writes them."""
    row = dict.fromkeys(RECORD_SCHEMA.names) | {
        "arm": "2-3",
        "view": view,
        "split": "fold0",
        "seed": 0,
        "question": "?",
        "gold": "Yes",
    }
    rows = [row | {"question_id": str(n), "prediction": "yes." if n < right else "no"} for n in range(of)]
    write_table(path, rows, RECORD_SCHEMA)
    own = {"checkpoint": sha256_file(source / "manifest.json"), "data": sha256_file(data / f"folds{cut}.json")}
    write_answered(path, "{}", own | (inputs or {}))
    return path


def data_set(folder, group="subject", **settings):
    """Manifest and folds of a data set."""
    folder.mkdir()
    counts = {"images": {"train": 4}, "questions": {"train": 20}}
    facts = {
        "settings": {"source": "slake-folder", **settings},
        "counts": counts,
        "files": {"questions.parquet": "1" * 64},
    }
    write_json(folder / "manifest.json", facts)
    write_record(folder / "folds.json", {"settings": {"group": group}})
    return folder


def stated(out):
    """The results in a card: data set's id, part, measure, value, questions."""
    data = ModelCard((out / "README.md").read_text()).data
    return [
        (one.dataset_type, one.dataset_split, one.metric_type, one.metric_value, one.dataset_args["questions"])
        for one in data.eval_results or []
    ]


VALIDATION = ("medical", "validation part of fold0", "accuracy", 50.0, 5)


def test_the_card_states_what_was_measured_of_this_checkpoint_and_on_what(models, trained, tmp_path):
    data = data_set(tmp_path / "medical")
    held_out = answers(tmp_path / "seed0.parquet", trained, data)
    test = answers(tmp_path / "seed0-test.parquet", trained, data, "test", 1, 3)
    export(trained, models, [data], tmp_path / "out", False, [held_out, test, held_out])
    assert stated(tmp_path / "out") == [
        VALIDATION,
        ("medical", "held-out part of fold0", "exact_match", 37.5, 8),
        ("medical", "the source's own test part", "exact_match", 33.33, 3),
    ]
    card = (tmp_path / "out/README.md").read_text()
    assert "| medical | held-out part of fold0 | exact match, per cent | 37.50 | 8 |" in card
    assert str(tmp_path) not in card
    front = ModelCard(card).data
    assert (front.license, front.license_name, front.license_link) == ("other", "licences-of-its-parts", "LICENSE.md")
    assert "| data set | medical | slake-folder | not stated |" in (tmp_path / "out/LICENSE.md").read_text()


def test_data_of_the_hub_and_official_parts_are_named_as_they_are(models, trained, tmp_path):
    data = data_set(tmp_path / "medical", "official", source="slake-hub", revision="a" * 40)
    held_out = answers(tmp_path / "seed0.parquet", trained, data)
    export(trained, models, [data], tmp_path / "out", False, [held_out])
    assert stated(tmp_path / "out") == [
        ("BoKelvin/SLAKE", *VALIDATION[1:]),
        ("BoKelvin/SLAKE", "the source's own validation part", "exact_match", 37.5, 8),
    ]
    front = ModelCard((tmp_path / "out/README.md").read_text()).data
    assert front.datasets == ["BoKelvin/SLAKE"] and front.eval_results[1].dataset_revision == "a" * 40


def test_a_card_without_results_has_no_place_for_them(models, trained, tmp_path):
    manifest = {key: value for key, value in read_json(trained / "manifest.json").items() if key != "seal"}
    write_record(trained / "manifest.json", manifest | {"split": "shared"})
    export(trained, models, [], tmp_path / "out", False)
    card = (tmp_path / "out/README.md").read_text()
    assert stated(tmp_path / "out") == [] and "## Results" not in card and "model-index" not in card


def test_validation_is_that_of_the_weights_that_were_kept(source):
    [found] = results(source)
    assert (found.dataset_split, found.metric_value, found.dataset_args) == (
        "validation part of fold0", 50.0, {"questions": 5},
    )  # fmt: skip
    change(source, epoch=2, stages=[{"1": {"data": "medical"}}, {"2": {"data": "medical", "select": "best"}}])
    [found] = results(source)
    assert (found.dataset_split, found.metric_value) == (
        "validation part of fold0, by which the epoch was chosen", 100.0,
    )  # fmt: skip


@pytest.mark.parametrize("facts", [{"split": "shared"}, {"split": "shared-1"}, {"epoch": 77}, {"epoch": None}])
def test_no_result_is_made_up(source, facts):
    change(source, **facts)
    assert results(source) == []


@pytest.mark.parametrize("view", ["swapped", "blank", "captions", "train"])
def test_answers_of_controls_and_captions_are_no_results(source, tmp_path, view):
    data = data_set(tmp_path / "medical")
    with pytest.raises(TriptychError, match=f"are answers of the view '{view}', and no result"):
        results(source, [data], answers(tmp_path / "seed0.parquet", source, data, view))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"checkpoint": "0" * 64}, "are the answers of another checkpoint than"),
        ({"data": "0" * 64}, "its questions are not those of a data set with folds that --data names"),
    ],
)
def test_answers_of_something_else_are_refused(source, tmp_path, inputs, said):
    data = data_set(tmp_path / "medical")
    with pytest.raises(TriptychError, match=said):
        results(source, [data], answers(tmp_path / "seed0.parquet", source, data, inputs=inputs))


def test_folds_that_leak_are_their_own(source, tmp_path):
    data = data_set(tmp_path / "medical")
    write_record(data / "folds-row.json", {"settings": {"group": "row"}})
    of_rows = answers(tmp_path / "rows.parquet", source, data, cut="-row")
    with pytest.raises(TriptychError, match="its questions are not those"):
        results(source, [data], of_rows)
    change(source, split="row-fold0")
    _, found = results(source, [data], answers(tmp_path / "rows.parquet", source, data, cut="-row"))
    assert found.dataset_split == "held-out part of row-fold0"


def test_answers_that_cannot_be_checked_are_refused(source, tmp_path):
    data = data_set(tmp_path / "medical")
    path = answers(tmp_path / "seed0.parquet", source, data)
    with pytest.raises(TriptychError, match=r"seed0-test\.parquet: no such file"):
        results(source, [data], tmp_path / "seed0-test.parquet")
    with pytest.raises(TriptychError, match="not those of a data set with folds that --data names"):
        results(source, [], path)
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(TriptychError, match="differs from its record"):
        results(source, [data], path)
    path.with_suffix(".json").unlink()
    with pytest.raises(TriptychError, match=r"seed0\.json, which says whose answers these are, is not beside it"):
        results(source, [data], path)


def test_the_command_exports_and_says_how_to_upload(models, trained, tmp_path, capsys):
    words = ["--checkpoint", trained, "--models", models, "--out", tmp_path / "out", "--push", "me/a-model"]
    command.main([str(word) for word in words])
    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith(f"hf upload me/a-model {tmp_path}/out . --private")
    assert json.loads((tmp_path / "out/triptych.json").read_text())["files"].keys() >= {"README.md", "LICENSE.md"}
