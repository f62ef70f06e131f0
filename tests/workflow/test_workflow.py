"""The whole grid on the toy world, run by Snakemake as a user would; then what reruns, and what does not."""

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import pandas
import pytest
import yaml
from browser import CHROMIUM, Browser
from conftest import KEY, ROOT, Study, toy_config
from latex import tabular
from triptych.commands.jobs import job_states
from triptych.config.study import read_study
from triptych.io.manifest import read_json, sha256_file
from triptych.report.results import Results

TRAININGS = {
    "1/shared",
    *(f"{prefix}/fold{fold}" for prefix in ("1-2", "1-2-3", "2", "2-3") for fold in (0, 1)),
}


def test_the_grid_is_trained_once_and_handed_on(study):
    found = {
        f"{path.parent.parent.parent.name}/{path.parent.parent.name}": read_json(path)
        for path in study.results.glob("checkpoints/*/*/*/manifest.json")
    }
    assert set(found) == TRAININGS
    shared = study.results / "checkpoints/1/shared/seed0/manifest.json"
    for fold in (0, 1):
        assert found[f"1-2/fold{fold}"]["parent"] == sha256_file(shared)
        assert found[f"2/fold{fold}"]["parent"] is None
        assert [list(stage) for stage in found[f"1-2-3/fold{fold}"]["stages"]] == [["1"], ["2"], ["3"]]
        assert set(found[f"2-3/fold{fold}"]["files"]) == {
            "connector.safetensors",
            "adapter.safetensors",
            "metrics.jsonl",
        }


def test_tables_and_figure_say_what_the_predictions_say(study):
    table = pandas.read_csv(study.results / "tables/schedules.csv").set_index("arm")
    untrained = ["majority", "majority-per-question", "majority-per-place", "nearest-images", "nearest-features"]
    untrained += ["classifier", "classifier-blind"]
    assert list(table.index) == ["1-2-3", "2-3", *untrained]
    predictions = [pandas.read_parquet(path) for path in study.results.glob("predictions/2-3/*/seed0.parquet")]
    hits = [100 * (frame["prediction"].str.lower() == frame["gold"].str.lower()).mean() for frame in predictions]
    assert table.loc["2-3", "all_mean"] == pytest.approx(sum(hits) / len(hits), abs=1e-3)
    constrained = [100 * (frame["constrained"] == frame["gold"]).mean() for frame in predictions]
    assert table.loc["2-3", "constrained_mean"] == pytest.approx(sum(constrained) / len(constrained), abs=1e-3)
    assert table.loc["majority":, "constrained_mean"].isna().all()
    assert "training answers only" in (study.results / "tables/schedules.md").read_text()
    # Train and validation of the source, 9 subjects of 2 images with 3 questions; its test part is in no fold.
    assert table.loc["2-3", "questions"] == sum(map(len, predictions)) == 54
    controls = pandas.read_csv(study.results / "tables/controls.csv").set_index("arm")
    assert controls.loc["2-3", "true_mean"] == table.loc["2-3", "all_mean"]
    for view in ("swapped", "blank"):
        answered = [pandas.read_parquet(path) for path in study.results.glob(f"predictions/2-3/*/seed0-{view}.parquet")]
        assert [len(frame) for frame in answered] == [len(frame) for frame in predictions]
        assert {name for frame in answered for name in frame["view"]} == {view}
    comparison = pandas.read_csv(study.results / "tables/comparison.csv")
    assert comparison.loc[0, ["first", "second", "runs"]].tolist() == ["1-2-3", "2-3", 2]
    gold = [
        pandas.concat(map(pandas.read_parquet, study.results.glob(f"predictions/{arm}/*/seed0.parquet")))
        for arm in ("1-2-3", "2-3")
    ]
    means = [frame["gold_logprob"].mean() for frame in gold]
    assert means[0] != means[1] and comparison.loc[0, "logprob_effect"] == pytest.approx(means[0] - means[1], abs=1e-3)
    by_type = pandas.read_csv(study.results / "tables/comparison_by_type.csv").set_index("value")
    assert by_type["questions"].to_dict() == {"Color": 36, "Position": 18, "CLOSED": 18, "OPEN": 36}
    probed = pandas.read_csv(study.results / "tables/probe.csv")
    representations = {"pre-projection", "random-connector", "1", "2", "1-2", "2-3", "1-2-3"}
    assert set(probed["representation"]) == representations and set(probed["attribute"]) == {"modality"}
    assert set(probed["images"]) == {18} and set(probed["folds"]) == {2}
    verdict = (study.results / "tables/probe.md").read_text().split("## Comparison with the paper")[1]
    assert "`1-2` (projection only) after `1`" in verdict and "`1-2-3` (end to end) after `1`" in verdict
    captions = pandas.read_csv(study.results / "tables/captions.csv", dtype={"prefix": str}).set_index("prefix")
    described = pandas.read_parquet(study.results / "predictions/1/shared/seed0.parquet")
    assert captions.loc["1", "captions"] == len(described) > 2 and set(described["view"]) == {"captions"}
    leak = pandas.read_csv(study.results / "tables/leak.csv").set_index(["arm", "folds_by"])
    assert set(leak["questions"]) == {54}
    strictest = {kind for (_, kind), row in leak.iterrows() if pandas.isna(row["inflation"])}
    assert strictest == {"near-duplicate-cluster"}
    stages = pandas.read_csv(study.results / "tables/stages.csv")
    assert set(stages["schedule"]) == {"1-2-3", "2-3"} and set(stages["epoch"]) == {0, 1}
    figures = (study.results / "figures/figures.md").read_text(encoding="utf-8")
    assert "54 held-out questions" in figures and "## Probes of image tokens" in figures
    assert (study.results / "figures/validation-84mm.pdf").read_bytes().startswith(b"%PDF")
    for path in (study.results / "tables").glob("*.tex"):
        assert len(tabular(path.read_text(encoding="utf-8"))) > 1, path.name


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_works_in_a_browser_without_a_network(study):
    path = study.results / "report.html"
    assert path.stat().st_size < 3e6
    with Browser() as browser:
        browser.look(390)
        browser.open(path.as_uri())
        assert browser.errors == [] and browser.asked == [path.as_uri()]
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.run("field('place').textContent") == "1 to 24 of 54"
        assert browser.run("document.querySelectorAll('svg.panel').length") >= 12
        assert browser.run("[...document.images].every(image => image.alt && image.src.startsWith('data:'))")
    found = Results.model_validate_json((study.results / "results.json").read_text(encoding="utf-8"))
    table = pandas.read_csv(study.results / "tables/schedules.csv")
    assert [arm.arm for arm in found.arms] == list(table["arm"]) and (found.questions, found.images) == (54, 18)
    assert (
        found.verdict == json.loads((study.results / "tables/comparison.json").read_text())["comparisons"][0]["verdict"]
    )
    asked = read_study(study.folder / "study.yaml").settings.evaluation.controls
    assert {row.view for row in found.lost} == set(asked) > {"swapped"}
    written = study.folder / "exported.json"
    command = [sys.executable, "-m", "triptych.cli", "export-results", "--configfile", str(study.folder / "study.yaml")]
    done = subprocess.run([*command, "--out", str(written)], cwd=study.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert written.read_bytes() == (study.results / "results.json").read_bytes()


def test_the_report_says_hours_overlaps_and_hashes(study):
    page = (study.results / "report.html").read_text(encoding="utf-8")

    def rows(start: str) -> list[list[str]]:
        body = page.split(start)[1].split("<tbody>")[1].split("</tbody>")[0]
        return [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in body.split("</tr>")[:-1]]

    hours = {row[0]: row[1:] for row in rows('id="planned"')}
    jobs = {"1": "1", "2": "2", "1-2": "2", "2-3": "2", "1-2-3": "2", "predictions": "4", "all": "13"}
    assert {what: found[0] for what, found in hours.items()} == jobs
    found = read_json(study.results / "data/audit.json")["fold_overlaps"]
    fields = ("seen", "part", "images", "identical_images", "similar_images", "seen_subject_images")
    assert rows("evaluated part") == [[str(row[field]) for field in fields] for row in found]
    for name in ("connector.safetensors", "adapter.safetensors"):
        assert sha256_file(study.results / f"checkpoints/2-3/fold0/seed0/{name}") in page


def test_snakemakes_own_report_carries_page_and_tables_with_captions(study):
    out = study.folder / "snakemake-report.html"
    study.snakemake("--report", str(out))
    carried = out.read_text(encoding="utf-8")
    tables = ["schedules", "by_content", "controls", "comparison", "probe", "leak", "captions", "stages"]
    tables += ["above_lookups", "comparison_by_type", "calibration"]
    for name in ("report.html", *(f"tables/{name}.csv" for name in tables)):
        assert base64.b64encode((study.results / name).read_bytes()).decode() in carried, name
    for caption in (ROOT / "workflow/report").glob("*.rst"):
        words = caption.read_text(encoding="utf-8").split()[:4]
        assert (" ".join(words) in carried) == (caption.stem not in ("test", "occlusion", "transfer", "scaling")), (
            f"{caption.name}: none of these four was made"
        )
    assert all(category in carried for category in ("Tables", "Report"))
    out.unlink()


def test_held_out_images_were_never_trained_on(study):
    folds = pandas.read_parquet(study.results / "data/medical/folds.parquet")
    questions = pandas.read_parquet(study.results / "data/medical/questions.parquet")
    merged = folds.drop(columns="group").merge(questions, on="question_id")
    for fold, rows in merged.groupby("fold"):
        answered = pandas.read_parquet(study.results / f"predictions/1-2-3/{fold}/seed0.parquet")
        trained_on = set(rows.loc[rows["part"] != "test", "group"])
        assert not trained_on & set(answered["group"])


def test_constrained_answers_are_training_answers_and_equal_free_ones_that_are(study):
    questions = pandas.read_parquet(study.results / "data/medical/questions.parquet").set_index("question_id")["answer"]
    folds = pandas.read_parquet(study.results / "data/medical/folds.parquet")
    known = {
        fold: set(questions[rows.loc[rows["part"] == "train", "question_id"]]) for fold, rows in folds.groupby("fold")
    }
    for path in study.results.glob("predictions/*/fold*/seed0.parquet"):
        answers = pandas.read_parquet(path)
        assert set(answers["constrained"]) <= known[path.parent.name]
        told = answers[answers["prediction"].isin(known[path.parent.name])]
        assert (told["prediction"] == told["constrained"]).all()
    for path in study.results.glob("predictions/*/*/seed0-swapped.parquet"):
        assert pandas.read_parquet(path)["constrained"].isna().all(), "controls are not asked so"


def test_metrics_have_every_epoch_and_their_training_numbers(study):
    for path in study.results.glob("checkpoints/*/*/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [0, 1]
        assert rows[1]["train_loss"] > 0 and rows[1]["gradient_norm_max"] > 0
        assert all(0 <= row["validation_accuracy"] <= 1 for row in rows)


def test_every_training_is_a_run_of_weights_and_biases_and_no_file_holds_a_key(study):
    runs = {run["name"]: run for run in read_json(study.results / "wandb/runs.json")}
    assert set(runs) == {f"{cell.replace('/', ' ')} seed0" for cell in TRAININGS}
    assert runs["1-2 fold0 seed0"]["group"] == "1-2-3 fold0" and runs["2 fold1 seed0"]["group"] == "2-3 fold1"
    for run in runs.values():
        assert len(list(study.results.glob(f"wandb/offline-run-*-{run['id']}/*.wandb"))) == 1
    files = [path for path in study.folder.rglob("*") if path.is_file()]
    assert len(files) > 100 and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_status_finds_everything_done(study, monkeypatch):
    monkeypatch.chdir(study.folder)
    reports = job_states(read_study(study.folder / "study.yaml"), time.time())
    assert {report.state for report in reports} == {"done"}
    trained = [report for report in reports if report.job.rule == "train_stage"]
    assert len(trained) == len(TRAININGS) and all("validation loss" in report.detail for report in trained)


def test_a_second_run_has_nothing_to_do(study):
    assert "Nothing to be done" in study.snakemake()


def test_touching_every_file_reruns_nothing(study):
    files = [path for path in study.results.rglob("*") if path.is_file()]
    random.Random(0).shuffle(files)
    for path in files:
        path.touch()
    assert study.planned() == {}


def test_deleted_tables_come_back_byte_for_byte(study):
    before = {path.name: path.read_bytes() for path in (study.results / "tables").iterdir()}
    shutil.rmtree(study.results / "tables")
    made_again = {"tabulate", "compare_schedules", "tabulate_probe", "tabulate_leak", "tabulate_stages", "all"}
    made_again |= {"tabulate_calibration", "tabulate_captions", "report"}
    assert set(study.planned()) == made_again
    study.snakemake()
    assert {path.name: path.read_bytes() for path in (study.results / "tables").iterdir()} == before


def test_the_test_part_is_scored_on_demand_and_once(study):
    assert not list(study.results.glob("predictions/*/*/*-test.parquet"))
    planned = study.snakemake("test", "--dry-run", "--quiet", "host")
    assert re.search(r"^predict_view +4$", planned, re.M) and not re.search(r"^predict +\d", planned, re.M)
    study.snakemake("test")
    answered = study.results.glob("predictions/2-3/*/seed0-test.parquet")
    rows = pandas.concat(map(pandas.read_parquet, answered))
    asked = pandas.read_parquet(study.results / "data/medical/questions.parquet").query("split == 'test'")
    assert set(rows["question_id"]) == set(asked["question_id"]) and set(rows["view"]) == {"test"}
    table = pandas.read_csv(study.results / "tables/test/schedules.csv").set_index("arm")
    assert table.loc["2-3", "questions"] == len(asked)
    compared = read_json(study.results / "tables/test/comparison.json")
    [row] = compared["comparisons"]
    assert compared["settings"]["view"] == "test" and (row["questions"], row["runs"], row["folds"]) == (
        len(asked),
        2,
        2,
    )
    assert row["groups"] == 1 and "nothing can be said about other images" in row["verdict"], "one subject"
    assert "Nothing to be done" in study.snakemake("test")
    shutil.rmtree(study.results / "tables/test")


def test_a_changed_stage_reruns_its_descendants_only(study, world):
    study.config = toy_config(world)
    study.config["stages"]["1"]["learning_rate"]["connector"] = 2e-2
    assert study.trained() == {cell for cell in TRAININGS if cell.startswith("1")}
    study.config = toy_config(world)
    study.config["lora"]["rank"] = 3
    assert study.trained() == {cell for cell in TRAININGS if "-3/" in cell}
    study.config = toy_config(world)
    study.config["runtime"] |= {"threads": 2, "processes": 2, "gradient_checkpointing": "always", "compile": "auto"}
    study.config["runtime"] |= {"save_minutes": 1, "time_limit_minutes": 60}
    study.config["cache"] = "elsewhere"
    study.config["stages"] = dict(reversed(study.config["stages"].items()))
    assert study.trained() == set(), "threads, processes, saving, cache and the order of keys are no part of a training"
    study.config = toy_config(world)


def test_many_finished_trainings_are_not_made_again_without_a_yes(study, world):
    study.config = toy_config(world)
    study.config["stages"]["2"]["learning_rate"]["connector"] = 2e-2
    kept = {path: path.read_bytes() for path in study.results.glob("checkpoints/*/*/*/connector.safetensors")}
    with pytest.raises(AssertionError) as caught:
        study.snakemake()
    text = str(caught.value)
    assert "8 finished training jobs would run again (runtime.retrain_at_most: 2)" in text
    assert "2 on fold0, seed 0: stage.learning_rate.connector 0.01 -> 0.02" in text
    assert "--config yes_retrain=true" in text
    assert {path: path.read_bytes() for path in kept} == kept
    plan = study.snakemake("plan")
    assert (
        "8 finished training jobs would run again" in plan and "2-3 on fold1, seed 0: its inputs are made again" in plan
    )
    assert study.planned()["train_stage"] == 8
    study.config = toy_config(world)
    assert "0 finished training jobs would run again" in study.snakemake("plan")


def test_a_new_seed_adds_its_own_jobs_only(study, world):
    study.config = {**toy_config(world), "seeds": [0, 1]}
    assert study.planned()["train_stage"] == len(TRAININGS)
    study.config = toy_config(world)


def test_what_is_set_on_the_command_line_reaches_report_and_plan(study):
    assert "2 folds x 3 seeds" in study.snakemake("plan", "--config", "seeds=[0,1,2]")
    commands = study.snakemake("--dry-run", "--printshellcmds", "--config", "seeds=[0,1]")
    assert re.search(r"triptych\.report --settings '[^']*\"seeds\":\[0,1\]", commands)


def test_a_deleted_final_weight_is_noticed_and_a_deleted_intermediate_one_is_not(study):
    final = study.results / "checkpoints/2-3/fold0/seed0/connector.safetensors"
    intermediate = study.results / "checkpoints/2/fold0/seed0/connector.safetensors"
    kept = {path: path.read_bytes() for path in (final, intermediate)}
    intermediate.unlink()
    assert study.planned() == {}
    intermediate.write_bytes(kept[intermediate])
    final.unlink()
    assert study.trained() == {"2-3/fold0"}
    final.write_bytes(kept[final])


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("predictions/2-3/fold1/seed0.parquet", "predict"),
        ("predictions/1-2-3/fold0/seed0-swapped.parquet", "predict"),
        ("predictions/majority/fold0/untrained.parquet", "predict_baseline"),
        ("predictions/1/shared/seed0.parquet", "predict_captions"),
        ("probes/2/seed0.parquet", "probe"),
    ],
)
def test_a_deleted_answer_is_made_again_and_nothing_trains(study, name, rule):
    path = study.results / name
    kept, times = path.read_bytes(), path.stat()
    path.unlink()
    planned = study.planned()
    path.write_bytes(kept)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert planned[rule] == 1 and "train_stage" not in planned and study.planned() == {}


def earlier(study, folder):
    """A copy of a study as the version left it that answered each view in a job of its own."""
    shutil.copytree(study.folder, folder, dirs_exist_ok=True)
    copy = Study(folder, study.config)
    for record in copy.results.glob("predictions/*/*/seed*.json"):
        record.unlink()
    for file in (folder / ".snakemake/metadata").rglob("*"):
        record = json.loads(file.read_text()) if file.is_file() else {}
        if record.get("rule") in ("predict", "predict_captions"):
            answers = base64.b64decode(file.name).decode()
            view = pandas.read_parquet(folder / answers)["view"].iloc[0] if "/shared/" not in answers else "captions"
            [job] = record["params"]
            record["params"] = [repr(view)] * (view != "captions") + [f'{job[:-2]},"view":"{view}"}}\'']
            file.write_text(json.dumps(record))
    return copy


def test_answers_of_a_study_that_was_asked_view_by_view_are_kept_and_a_new_view_is_asked_alone(study, tmp_path):
    copy = earlier(study, tmp_path)
    assert copy.planned() == {}
    answers = [copy.results / f"predictions/2-3/fold0/seed0{view}.parquet" for view in ("", "-swapped", "-blank")]
    before = {path: path.read_bytes() for path in answers}
    answers[2].unlink()
    copy.snakemake(str(answers[2].relative_to(tmp_path)))
    log = copy.results / "logs/predict/2-3/fold0/seed0.log"
    assert log.read_text().startswith("answered already, and kept: held-out, swapped\n")
    assert {path: path.read_bytes() for path in answers} == before
    copy.snakemake(str(answers[0].relative_to(tmp_path)), "--forcerun", "predict")
    assert "kept" not in log.read_text() and {path: path.read_bytes() for path in answers} == before
    copy.config["evaluation"]["batch_size"] = 7
    assert copy.planned()["predict"] == 4


def test_a_larger_set_beside_the_smaller_one_makes_only_what_is_new(study, world):
    study.config = toy_config(world)
    study.config["datasets"]["general"]["sizes"] = [16, 24]
    assert set(study.planned()) == {"report", "all"}, "a size that no stage uses; the report shows all settings"
    study.config["stages"]["1-16"] = {**study.config["stages"]["1"], "data": "general-16"}
    study.config["schedules"].append(["1-16", "2"])
    assert study.trained() == {"1-16/shared", "1-16-2/fold0", "1-16-2/fold1"}
    study.config = toy_config(world)


def test_a_changed_caption_table_is_noticed(study, world):
    table = world / "captions" / "captions.jsonl"
    kept = table.read_text()
    table.touch()
    assert study.planned() == {}
    table.write_text(kept.replace("a red square", "a crimson square"))
    assert study.planned()["fetch_dataset"] == 1
    table.write_text(kept)
    assert study.planned() == {}


def drawn_for_each_fold(config):
    return config | {"folds": {**config["folds"], "shared_stages": "per-fold"}}


def test_draws_of_a_shared_stage_for_each_fold_train_what_starts_from_it_and_nothing_else(study, world):
    study.config = drawn_for_each_fold(toy_config(world))
    again = {f"{prefix}/fold{fold}" for prefix in ("1-2", "1-2-3") for fold in (0, 1)}
    assert study.trained() == {"1/shared-fold0", "1/shared-fold1"} | again
    planned = study.planned()
    assert "make_folds" not in planned and planned["predict_captions"] == 2
    study.config = toy_config(world)
    assert study.planned() == {}


def test_a_shared_stage_is_drawn_for_each_fold_and_handed_on_to_it(world, tmp_path):
    drawn = Study(tmp_path, drawn_for_each_fold(toy_config(world)))
    ends = [f"checkpoints/1-2/fold{fold}/seed0/manifest.json" for fold in (0, 1)]
    drawn.snakemake(*(f"results/{end}" for end in (*ends, "tables/captions.md", "probes/1/seed0.parquet")))
    folder = drawn.results / "checkpoints"
    first = [folder / f"1/shared-fold{fold}/seed0/manifest.json" for fold in (0, 1)]
    one, two = map(read_json, first)
    assert one["data"] == two["data"] and one["samples"] == two["samples"] and one["files"] != two["files"]
    for fold in (0, 1):
        assert read_json(drawn.results / ends[fold])["parent"] == sha256_file(first[fold])
    captions = pandas.read_csv(drawn.results / "tables/captions.csv")
    assert captions[["folds", "seeds"]].values.tolist() == [[2, 1]]
    assert not list(folder.glob("*/shared")) and not list(drawn.results.glob("predictions/*/shared"))


@pytest.mark.parametrize("split", ["shared", "shared-fold1"])
def test_a_shared_stage_that_would_see_held_out_images_stops_the_run(world, tmp_path, split):
    config = toy_config(world) if split == "shared" else drawn_for_each_fold(toy_config(world))
    config["datasets"]["more"] = dict(config["datasets"]["medical"])
    config["stages"]["1"]["data"] = "more"
    leaking = Study(tmp_path, config)
    with pytest.raises(AssertionError) as caught:
        leaking.snakemake(f"results/checkpoints/1/{split}/seed0/manifest.json")
    text = str(caught.value)
    assert "error: 20 images leak from held-out parts into stages that all folds share" in text
    assert "more 0 is the image 0 of medical" in text
    assert not list(tmp_path.glob("results/checkpoints/*"))


def test_preparing_a_data_set_ends_with_its_counts_on_the_screen(world, tmp_path):
    text = Study(tmp_path, toy_config(world)).snakemake("results/data/general-24/manifest.json")
    assert "\ngeneral-24: 24 images seen, 24 accepted, 0 rejected\n" in text


def test_a_failed_step_shows_its_one_line(study, world, tmp_path):
    config = toy_config(world)
    config["datasets"]["medical"]["folder"] = str(tmp_path / "nowhere")
    (tmp_path / "nowhere").mkdir()
    broken = Study(tmp_path, config)
    with pytest.raises(AssertionError) as caught:
        broken.snakemake("results/sources/medical/manifest.json")
    text = str(caught.value)
    assert "nowhere/train.json: not there; the key `folder` must name" in text
    assert "Traceback" not in text


def run_command(study, *arguments):
    """`triptych run` on a study, as `make demo` calls it."""
    (study.folder / "study.yaml").write_text(yaml.safe_dump(study.config))
    command = [sys.executable, "-m", "triptych.cli", "run", "--profile", str(ROOT / "profiles/local")]
    command += ["--directory", str(study.folder), "--configfile", str(study.folder / "study.yaml")]
    command += ["--snakefile", str(ROOT / "Snakefile"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_run_ends_with_the_table_the_answer_and_where_the_report_is(study):
    done = run_command(study)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (study.results / "tables/schedules.md").read_text()
    found = read_json(study.results / "results.json")
    assert found["caveat"]
    sentences = "\n".join([f"{found['answer']} {found['caveat']}", *(card["text"] for card in found["cards"][:2])])
    assert f"{table.rstrip()}\n\n{sentences}\n" in done.stdout
    assert done.stdout.endswith("report: results/report.html\n") and " done\n" in done.stdout
    assert "Nothing to be done" in (study.results / "logs/snakemake.log").read_text()


def test_a_run_that_fails_says_why_and_where_its_log_is(world, tmp_path):
    study = Study(tmp_path, toy_config(world))
    study.config["datasets"]["medical"]["folder"] = str(tmp_path / "gone")
    done = run_command(study)
    assert done.returncode == 1 and f"datasets.medical.folder: {tmp_path}/gone is not there" in done.stderr
    assert not (study.results / "sources").exists(), "nothing ran"
    (tmp_path / "gone").mkdir()
    done = run_command(study)
    assert done.returncode == 1 and "failed: fetch_dataset medical: error:" in done.stderr
    assert done.stderr.rstrip().endswith("all of its output is in results/logs/snakemake.log")
    done = run_command(study, "--no-such-option")
    assert done.returncode == 1 and "--no-such-option" in done.stderr
