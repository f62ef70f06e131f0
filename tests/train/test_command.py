"""Trainings and predictions as their commands run them."""

import json
import signal
import subprocess
import sys
from itertools import combinations

import pyarrow.parquet
import pytest
import torch
from conftest import make_inputs
from safetensors.torch import load_file
from trainings import (
    no_features,
    same,
)
from triptych.config.arms import CONTROLS, Control
from triptych.config.stages import Connector, Lora, Stage
from triptych.errors import TriptychError
from triptych.evaluate import generate, predict, respondent
from triptych.evaluate.answered import write_answered
from triptych.evaluate.controls import Shown
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.model import checkpoint
from triptych.model.connector import Mlp
from triptych.train import __main__ as command
from triptych.train.autosave import SIGNALS
from triptych.utils.device import best_device


@pytest.fixture(scope="module")
def inputs(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages") / "inputs"
    make_inputs(world, folder)
    return folder


@pytest.fixture
def steps(inputs, tmp_path, monkeypatch):
    """Runs trainings and predictions in this process: name and stage in, the checkpoint's manifest out."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    names = ("data", "features", "language-model", "vision-encoder")
    places = [f"--{name}={inputs / name.replace('-', '_')}" for name in names]

    def run_stage(name, settings, parent=None, split="shared", **adapters):
        stage, settings = name.partition("/")[0], Stage(data="toy", **settings).model_dump()
        job = {"prefix": stage, "split": split, "seed": 4, "stage_name": stage, "stage": settings}
        job |= {"connector": Connector().model_dump(), "training": {"precision": "fp32"}}
        lora = Lora(rank=2, alpha=4, **adapters).model_dump()
        job |= {"lora": lora if "lora" in settings["train"] else None}
        arguments = ["--job", json.dumps(job), *places, f"--out={tmp_path / name}"]
        arguments += ["--parent", str(parent)] if parent else []
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        command.main()
        return tmp_path / name / "manifest.json"

    def run_predict(manifest, *views, folder="answers", also=(), **settings):
        job = json.dumps({"precision": "fp32", "max_new_tokens": 4, "batch_size": 5, **settings})
        told = [f"--job={job}", "--views", *(views or ("held-out",))]
        outs = [tmp_path / folder / f"{view}.parquet" for view in views or ("held-out",)]
        others = [word for words in also for word in ("--also", *map(str, words))]
        monkeypatch.setattr(
            "sys.argv", ["x", f"--checkpoint={manifest}", *places, *told, "--out", *map(str, outs), *others]
        )
        predict.main()
        return read_table(outs[0]) if len(outs) == 1 else [path.read_bytes() for path in outs]

    yield run_stage, run_predict
    for number, handler in handlers.items():
        signal.signal(number, handler)


LORA = {"train": ["lora"], "learning_rate": {"lora": 1e-2}, "epochs": 1}
BOTH = {"train": ["connector", "lora"], "learning_rate": {"connector": 1e-2, "lora": 1e-2}, "epochs": 1}


WHOLE = {"train": ["connector", "language_model"], "epochs": 1}
WHOLE["learning_rate"] = {"connector": 1e-2, "language_model": 1e-3}


def tensors(manifest):
    return {path.name: load_file(path) for path in manifest.parent.glob("*.safetensors")}


def test_a_stage_that_trains_nothing_passes_its_parent_on(steps):
    run_stage, _ = steps
    both = run_stage("both", BOTH)
    passed = run_stage("passed", {"train": []}, both)
    found, expected = tensors(passed), tensors(both)
    assert found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    manifest = read_json(passed)
    assert [list(stage) for stage in manifest["stages"]] == [["both"], ["passed"]]
    assert manifest["epoch"] == 0 and manifest["metrics"]["epoch"] == 0
    assert not list(passed.parent.glob("last/state-*"))


def test_a_shared_stage_is_drawn_anew_for_each_fold_on_the_same_data_and_handed_on_to_that_fold_alone(steps, inputs):
    run_stage, _ = steps
    settings = {"train": ["connector"], "learning_rate": {"connector": 1e-2}, "epochs": 1}
    splits = ("shared", "shared-fold0", "shared-fold1")
    found = {split: run_stage(f"1/{split}", settings, split=split) for split in splits}
    again = run_stage("1/again", settings, split="shared-fold0")
    weights = {split: tensors(path)["connector.safetensors"] for split, path in found.items()}
    assert same(tensors(again)["connector.safetensors"], weights["shared-fold0"])
    assert not any(same(weights[one], weights[two]) for one, two in combinations(splits, 2))
    records = [read_json(path) for path in found.values()]
    assert [record["split"] for record in records] == list(splits)
    for name in ("samples", "data", "features", "stages"):
        assert all(record[name] == records[0][name] for record in records)
    base = base_of(inputs)
    told = (Connector(), None, 4)
    for split in ("fold1", "row-fold1", "shared-fold1"):
        model = checkpoint.build(base, found["shared-fold1"], *told, split, torch.float32, torch.device("cpu"))
        assert same(model.connector.state_dict(), weights["shared-fold1"])
        checkpoint.build(base, found["shared"], *told, split, torch.float32, torch.device("cpu"))
        with pytest.raises(TriptychError, match=f"was trained on shared-fold0, from which {split} does not start"):
            checkpoint.build(base, found["shared-fold0"], *told, split, torch.float32, torch.device("cpu"))


def base_of(inputs):
    features = read_json(inputs / "features" / "manifest.json")
    return checkpoint.Base(inputs / "language_model", features["shape"][-1], features["encoder"])


def test_a_fresh_connector_beside_the_parents_adapters(steps):
    run_stage, _ = steps
    both, fresh = run_stage("both", BOTH), run_stage("fresh", {"train": []})
    control = run_stage("control", {"train": [], "init": "random"}, both)
    found = tensors(control)
    assert same(found["connector.safetensors"], tensors(fresh)["connector.safetensors"])
    assert same(found["adapter.safetensors"], tensors(both)["adapter.safetensors"])
    assert not same(found["connector.safetensors"], tensors(both)["connector.safetensors"])
    frozen = run_stage("frozen", {**LORA, "init": "random"}, both)  # LoRA on a random frozen connector
    assert same(tensors(frozen)["connector.safetensors"], found["connector.safetensors"])
    assert not same(tensors(frozen)["adapter.safetensors"], found["adapter.safetensors"])


@pytest.mark.parametrize("after", [{"train": []}, LORA, {**LORA, "init": "random"}, WHOLE])
def test_a_tuned_language_model_is_handed_on(steps, inputs, after):
    run_stage, run_predict = steps
    tuned = run_stage("tuned", {**WHOLE, "select": "best", "epochs": 2})
    child = run_stage("child", after, tuned)
    found, parent = tensors(child), tensors(tuned)
    name = "language_model.safetensors"
    assert set(found) == {*parent, *(["adapter.safetensors"] if "lora" in after["train"] else [])}
    assert same(found[name], parent[name]) == ("language_model" not in after["train"])
    assert ((child.parent / name).stat().st_ino == (tuned.parent / name).stat().st_ino) == same(
        found[name], parent[name]
    ), "one that was frozen takes no space of its own"
    assert name in read_json(child)["files"] and read_json(child)["parameters"]["language_model"]
    features = read_json(inputs / "features" / "manifest.json")
    base = checkpoint.Base(inputs / "language_model", features["shape"][-1], features["encoder"])
    for dtype in (torch.float32, torch.bfloat16):
        loaded = checkpoint.load(base, child, dtype, torch.device("cpu"))
        assert all(torch.equal(one, found[name][key].to(dtype)) for key, one in loaded.own_weights().items())
    base_alone = run_stage("alone", {"train": []})
    answers = [[(row["prediction"], row["logprob"]) for row in run_predict(one)] for one in (child, tuned, base_alone)]
    assert answers[1] != answers[2] and answers[0] != answers[2]
    assert (answers[0] == answers[1]) == (after["train"] == [])


def test_a_language_model_does_not_train_behind_adapters(steps, tmp_path):
    run_stage, _ = steps
    adapted = run_stage("adapted", LORA)
    with pytest.raises(TriptychError, match="an earlier one has trained LoRA on it; train the language model first"):
        run_stage("tuned", WHOLE, adapted)
    assert not (tmp_path / "tuned" / "manifest.json").exists()


def test_a_tuned_checkpoint_is_restored_where_nothing_has_changed(steps, capsys):
    run_stage, _ = steps
    tuned = run_stage("tuned", WHOLE)
    before = tensors(tuned)
    child = run_stage("child", LORA, tuned)
    for path in child.parent.glob("*.*"):
        path.unlink()
    run_stage("child", LORA, tuned)
    assert "its checkpoint is restored" in capsys.readouterr().out
    assert same(tensors(child)["language_model.safetensors"], before["language_model.safetensors"])


def test_a_blind_checkpoint_answers_blindly_by_itself(steps, monkeypatch, inputs):
    run_stage, run_predict = steps
    seeing = run_stage("seeing", {**BOTH, "select": "best", "epochs": 2})
    assert read_json(seeing)["epoch"] in (1, 2) and not read_json(seeing)["blind"]
    assert len(run_predict(seeing)) > 0
    monkeypatch.setattr("triptych.features.store.Features.__call__", no_features)
    blind = run_stage("blind", {**LORA, "blind": True}, seeing)
    assert read_json(blind)["blind"] and read_json(blind)["metrics"]["token_norm_ratio"] is None
    answers = run_predict(blind)
    asked = {}
    for answer in answers:
        asked.setdefault(answer["question"], set()).add(answer["prediction"])
    assert all(len(given) == 1 for given in asked.values()), "one answer to a question, whatever the image"
    features = read_json(inputs / "features" / "manifest.json")
    base = checkpoint.Base(inputs / "language_model", features["shape"][-1], features["encoder"])
    assert checkpoint.load(base, blind, torch.float32, best_device()).blind


def test_with_another_image_or_none_the_same_questions_are_asked(steps):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", {**BOTH, "epochs": 2})
    answers = {view: run_predict(manifest, view) for view in ("held-out", "swapped", "blank")}
    asked = {view: [row["question_id"] for row in rows] for view, rows in answers.items()}
    assert asked["held-out"] == asked["swapped"] == asked["blank"]
    assert all(row["view"] == view for view, rows in answers.items() for row in rows)
    chances = {view: [row["logprob"] for row in rows] for view, rows in answers.items()}
    assert len({tuple(values) for values in chances.values()}) == 3, "each view shows something else"
    one_by_one = {}
    for row in answers["blank"]:
        one_by_one.setdefault(row["question"], set()).add(row["prediction"])
    assert all(len(given) == 1 for given in one_by_one.values()), "the same grey image for every question"


def test_gold_answers_have_log_probabilities_with_their_own_image_alone(steps, tmp_path, capsys):
    run_stage, run_predict = steps
    fresh, trained = run_stage("fresh", {"train": []}), run_stage("trained", {**BOTH, "epochs": 3})
    before = run_predict(fresh)
    run_predict(trained, *VIEWS)
    for view in VIEWS:
        rows = read_rows(tmp_path / "answers", view)
        known = [(row["gold_tokens"], row["gold_logprob"]) for row in rows]
        if view in ("swapped", "blank"):
            assert set(known) == {(None, None)}
            continue
        assert all(tokens > 1 and logprob < 0 for tokens, logprob in known)
    learnt = read_rows(tmp_path / "answers", "held-out")
    gains = [row["gold_logprob"] - old["gold_logprob"] for row, old in zip(learnt, before, strict=True)]
    assert sum(gains) / len(gains) > 0.5, "in nats an answer"
    assert "fit into the language model's context" not in capsys.readouterr().out


def test_answers_without_gold_log_probabilities_are_not_asked_again(steps, tmp_path, monkeypatch):
    """A finished study of an earlier version has none in its answers, whose record says that they are complete."""
    run_stage, run_predict = steps
    manifest = run_stage("seeing", BOTH)
    run_predict(manifest)
    answers = tmp_path / "answers/held-out.parquet"
    earlier = pyarrow.parquet.read_table(answers).drop_columns(["gold_tokens", "gold_logprob"])
    pyarrow.parquet.write_table(earlier, answers)
    record = read_json(answers.with_suffix(".json"))
    write_answered(answers, record["job"], record["inputs"])
    samples = asked(monkeypatch)
    rows = run_predict(manifest)
    assert samples == [] and "gold_logprob" not in rows[0]


def all_but_two(questions, features, encoder, device):
    images = sorted({row["image_id"] for row in questions})
    return Shown({image: image for image in images}, features, frozenset([images[0], images[5]]))


def test_questions_of_images_that_a_control_leaves_out_are_not_asked(steps, monkeypatch):
    monkeypatch.setitem(CONTROLS, "all-but-two", Control(f"{__name__}:all_but_two", "", ""))
    run_stage, run_predict = steps
    manifest = run_stage("seeing", {**BOTH, "epochs": 1})
    own, control = (run_predict(manifest, view) for view in ("held-out", "all-but-two"))
    out = sorted({row["image_id"] for row in own})
    expected = [row for row in own if row["image_id"] not in (out[0], out[5])]
    asked = ("question_id", "prediction", "gold")
    assert [[row[name] for name in asked] for row in control] == [[row[name] for name in asked] for row in expected]
    assert 0 < len(control) < len(own)


def test_a_killed_prediction_ends_with_the_same_records(steps, monkeypatch, capsys):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", {**BOTH, "epochs": 1})
    whole = run_predict(manifest)
    generate, calls = respondent.generate, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(respondent, "generate", killed)
        run_predict(manifest, folder="killed")
    capsys.readouterr()
    assert run_predict(manifest, folder="killed") == whole
    progress = [line for line in capsys.readouterr().out.splitlines() if "questions" in line]
    assert f"{min(10, len(whole))}/{len(whole)} questions" in progress[0]


VIEWS = ("held-out", "swapped", "blank", "test")


def asked(monkeypatch):
    """Count the questions that are answered from here on."""
    generate, samples = respondent.generate, []

    def counted(model, batch, *others, **options):
        samples.extend(batch)
        return generate(model, batch, *others, **options)

    monkeypatch.setattr(respondent, "generate", counted)
    return samples


def test_views_asked_together_have_the_bytes_of_each_asked_alone(steps, tmp_path, monkeypatch):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", BOTH)
    run, calls = respondent.run_prefixes, []
    monkeypatch.setattr(respondent, "run_prefixes", lambda *arguments: calls.extend(arguments[-1]) or run(*arguments))
    together = run_predict(manifest, *VIEWS, folder="together")
    images = {row["image_id"] for view in ("held-out", "test") for row in read_rows(tmp_path / "together", view)}
    assert len(calls) <= len(images) + len(read_images(tmp_path / "together", "test")) + 1, "and one grey image"
    for view in VIEWS:
        run_predict(manifest, view, folder="alone")
    assert [(tmp_path / f"alone/{view}.parquet").read_bytes() for view in VIEWS] == together
    assert run_predict(manifest, "blank", "swapped", folder="two") == [together[2], together[1]]
    assert len(set(together)) == len(VIEWS)


def test_short_questions_come_first_unless_images_are_too_large_to_be_kept(steps, tmp_path, monkeypatch):
    run_stage, run_predict = steps
    manifest, rows = run_stage("seeing", {**BOTH, "epochs": 2}), {}
    for folder, room in (("kept", 1 << 30), ("anew", 0)):
        samples = asked(monkeypatch)
        monkeypatch.setattr(generate, "PREFIX_BYTES", room)
        run_predict(manifest, *VIEWS[:2], folder=folder)
        rows[folder] = [row for view in VIEWS[:2] for row in read_rows(tmp_path / folder, view)]
        names, lengths = ([one.question_id for one in samples], [len(one.question) for one in samples])
        half = len(samples) // 2  # of each view
        assert half > 5, "batches of 5"
        if folder == "kept":
            assert lengths == 2 * sorted(lengths[:half]) and len(set(lengths)) > 1
        else:
            assert names == [row["question_id"] for row in rows[folder]], "questions of an image follow each other"
    for row, other in zip(rows["kept"], rows["anew"], strict=True):
        for name in ("logprob", "gold_logprob"):
            assert row.pop(name) == pytest.approx(other.pop(name), abs=1e-5)
        assert row == other


def read_rows(folder, view):
    return read_table(folder / f"{view}.parquet")


def different(folder, view):
    """The number of questions that differ in words or image: of a grey image, those that differ in words."""
    return len({(row["image_id"] if view != "blank" else "", row["question"]) for row in read_rows(folder, view)})


def read_images(folder, view):
    return {row["image_id"] for row in read_rows(folder, view)}


@pytest.mark.parametrize("stopped_at", [1, 9, 13])  # 7 batches a view: in its first, in the second view
def test_a_job_killed_in_any_view_goes_on_there_also_where_its_files_were_removed(
    steps, stopped_at, tmp_path, monkeypatch
):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", BOTH)
    whole = run_predict(manifest, *VIEWS[:3], folder="whole")
    total = sum(different(tmp_path / "whole", view) for view in VIEWS[:3])
    generate, calls = respondent.generate, []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    for removed in (False, True):  # of a failed job, Snakemake removes the results
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(respondent, "generate", killed)
            run_predict(manifest, *VIEWS[:3], folder=f"killed{removed}")
        there = [view for view in VIEWS[:3] if (tmp_path / f"killed{removed}/{view}.parquet").exists()]
        assert len(there) == (stopped_at - 1) // 7, "each view is written when it is done"
        for view in there if removed else ():
            (tmp_path / f"killed{removed}/{view}.parquet").unlink()
        with monkeypatch.context() as patch:
            samples = asked(patch)
            assert run_predict(manifest, *VIEWS[:3], folder=f"killed{removed}") == whole
        assert len(samples) == total - sum(min(5, 32 - 5 * (call % 7)) for call in range(stopped_at - 1))
        assert not list((tmp_path / f"killed{removed}").glob("*.part.jsonl"))


def test_only_what_is_missing_or_changed_is_asked(steps, tmp_path, monkeypatch, capsys):
    run_stage, run_predict = steps
    manifest = run_stage("seeing", BOTH)
    folder = tmp_path / "answers"
    both = run_predict(manifest, "held-out", "swapped")
    samples, number = asked(monkeypatch), len(read_rows(folder, "held-out"))

    def asks(views, *names, **settings):
        samples.clear()
        run_predict(manifest, *names, **settings)
        assert len(samples) == views * number, names

    asks(0, "held-out", "swapped")
    assert "answered already, and kept: held-out, swapped" in capsys.readouterr().out
    samples.clear()
    run_predict(manifest, "held-out", "swapped", "blank")
    assert len(samples) == different(folder, "blank") < number
    (folder / "swapped.parquet").unlink()
    asks(1, "held-out", "swapped")
    (folder / "held-out.parquet").write_bytes(both[0][:-1] + b"?")
    asks(1, "held-out", "swapped")
    (folder / "swapped.json").write_text("{")
    asks(1, "held-out", "swapped")
    assert [(folder / f"{view}.parquet").read_bytes() for view in ("held-out", "swapped")] == both
    asks(2, "held-out", "swapped", max_new_tokens=3)
    asks(0, "held-out", "swapped", max_new_tokens=3)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    whole = run_predict(manifest, "held-out", "swapped")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(respondent, "generate", stop)
        run_predict(manifest, "held-out", "swapped", "test")
    for path in folder.glob("*.parquet"):  # as Snakemake does with all results of a job that failed
        path.unlink()
    samples.clear()
    again = run_predict(manifest, "held-out", "swapped", "test")
    assert again[:2] == whole and len(samples) == len(read_rows(folder, "test"))
    assert {path.suffix for path in folder.iterdir()} == {".parquet", ".json"}
    manifest.write_text(manifest.read_text() + "\n")  # another checkpoint by the same name
    asks(2, "held-out", "swapped", max_new_tokens=3)


def test_a_parent_with_another_connector_is_refused(steps, inputs):
    run_stage, _ = steps
    parent = run_stage("parent", {"train": []})
    features = read_json(inputs / "features" / "manifest.json")
    base = checkpoint.Base(inputs / "language_model", features["shape"][-1], features["encoder"])
    pooled = Connector(kind="pooled-mlp", pool=2)
    with pytest.raises(TriptychError, match="was trained with another connector"):
        checkpoint.build(base, parent, pooled, None, 4, "shared", torch.float32, torch.device("cpu"))
    fresh = checkpoint.build(base, parent, pooled, None, 4, "shared", torch.float32, torch.device("cpu"), "random")
    assert isinstance(fresh.connector, Mlp) and fresh.connector.pool == 2


def test_one_process_answers_for_checkpoints_of_equal_models_and_their_jobs_find_it(
    steps, tmp_path, monkeypatch, capsys
):
    run_stage, run_predict = steps
    first, second = (run_stage(name, {**BOTH, "epochs": epochs}) for name, epochs in (("a", 1), ("b", 2)))
    whole = {name: run_predict(one, *VIEWS[:2], folder=f"alone-{name}") for name, one in (("a", first), ("b", second))}
    places = {name: [tmp_path / name / f"{view}.parquet" for view in VIEWS[:2]] for name in ("b", "c")}
    absent = [tmp_path / "nowhere/manifest.json", *places["c"]]
    both = run_predict(first, *VIEWS[:2], folder="a", also=[absent, [second, *places["b"]]])
    assert both == whole["a"] and [path.read_bytes() for path in places["b"]] == whole["b"]
    assert not any(path.exists() for path in places["c"]) and not list((tmp_path / "a").glob("*.kept"))
    with monkeypatch.context() as patch:
        samples = asked(patch)
        assert run_predict(second, *VIEWS[:2], folder="b", also=[[first, *places["c"]]]) == whole["b"]
        assert samples == [] and not places["c"][0].exists(), "who was answered already asks no other"
    assert "answered already, and kept: held-out, swapped" in capsys.readouterr().out


def test_a_further_checkpoint_that_fails_or_is_killed_costs_the_job_nothing(steps, tmp_path, monkeypatch, capsys):
    run_stage, run_predict = steps
    first, second = (run_stage(name, {**BOTH, "epochs": 1}) for name in ("a", "b"))
    whole = run_predict(first, *VIEWS[:2], folder="alone")
    weights = second.parent / "connector.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"\x7f")
    other = [second, *(tmp_path / "b" / f"{view}.parquet" for view in VIEWS[:2])]
    assert run_predict(first, *VIEWS[:2], folder="a", also=[other]) == whole
    assert "left to its own job: " in (said := capsys.readouterr().out) and "connector.safetensors" in said
    weights.write_bytes(good)

    loaded = []

    def killed(*arguments):
        loaded.append(1)
        if len(loaded) == 2:
            raise KeyboardInterrupt
        return load(*arguments)

    load = checkpoint.load
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "load", killed)
        run_predict(first, *VIEWS[:2], folder="c", also=[other])
    for path in (tmp_path / "c").glob("*.parquet"):
        path.unlink()  # as Snakemake does with the results of a failed job
    with monkeypatch.context() as patch:
        samples = asked(patch)
        assert run_predict(first, *VIEWS[:2], folder="c") == whole and samples == []


def test_torch_is_not_loaded_for_what_is_answered_already():
    code = "import sys, triptych.evaluate.predict; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
