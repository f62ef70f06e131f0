"""A toy study that asks a second data set, which nothing trains on: jobs, answers, tables, report, and leaks."""

import copy
import json
import re

import hub_files
import pytest
from conftest import KEY, Study, toy_config
from hub import REVISION, Hub
from triptych.config.study import load_study
from triptych.errors import TriptychError
from triptych.io.manifest import read_json
from triptych.io.parquet import read_table
from triptych.tables import transfer
from triptych.tables.format import read_csv

RAD = {
    "source": "hub-questions",
    "repo": "some/rad",
    "revision": REVISION,
    "parts": {"train": "data/train-*.parquet", "test": "data/test-*.parquet"},
}


def with_transfer(world, **asked) -> dict:
    config = copy.deepcopy(toy_config(world))
    config["datasets"]["rad"] = dict(RAD)
    config["evaluation"] |= {"datasets": asked or {"rad": "test"}, "probe": None, "leak": None, "captions": None}
    return config


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rat": "test"}, r"evaluation\.datasets: 'rat', which is not under datasets: .*; did you mean 'rad'"),
        ({"general-24": "test"}, r"evaluation\.datasets: 'general-24' has captions; only questions can be asked"),
        ({"medical": "test"}, r"evaluation\.datasets: 'medical' is cut into folds; `snakemake test` asks its own"),
        (
            {"rad": "validation"},
            r"evaluation\.datasets\.rad: the data set has no part 'validation'; see its key `parts`",
        ),
        ({"rad": "dev"}, r"evaluation\.datasets\.rad: must be 'train', 'validation' or 'test'"),
        (["rad"], r"evaluation\.datasets: must be a mapping"),
    ],
)
def test_names_that_cannot_be_asked_are_refused(world, asked, message):
    config = with_transfer(world)
    config["evaluation"]["datasets"] = asked
    with pytest.raises(TriptychError, match=message):
        load_study(config)


@pytest.mark.parametrize("ablation", [False, True])
def test_data_that_a_stage_trains_on_cannot_be_asked(world, ablation):
    config = with_transfer(world)
    if ablation:
        config["ablations"] = {"other": {"stages": {"1": {"data": "rad"}}}}
    else:
        config["stages"]["1"]["data"] = "rad"
    with pytest.raises(TriptychError, match=r"evaluation\.datasets: 'rad' is what stage 1 trains on; name data"):
        load_study(config)


def test_without_the_setting_no_record_changes(world):
    plain = toy_config(world)
    study, other = load_study(plain), load_study({**plain, "evaluation": {**plain["evaluation"], "datasets": {}}})
    assert study.settings.evaluation.model_dump() == other.settings.evaluation.model_dump()
    assert "datasets" not in study.settings.evaluation.model_dump()
    assert study.grid.used_datasets == study.grid.training_datasets == ["general-24", "medical"]


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """The toy study, finished without a second data set, and then with one."""
    study = Study(tmp_path_factory.mktemp("transfer"), with_transfer(world))
    asked = study.config["evaluation"].pop("datasets")
    study.snakemake()
    own = {path: path.read_bytes() for path in (study.results / "tables").glob("*") if path.is_file()}
    study.config["evaluation"]["datasets"] = asked
    with Hub({"datasets/some/rad": hub_files.vqa_rad()}, tokens=[KEY]):
        planned = study.planned()
        study.snakemake()
    return study, own, planned


def test_a_second_data_set_is_asked_of_a_finished_study_and_nothing_trains_again(finished):
    study, own, planned = finished
    assert planned["predict_transfer"] == 4 and planned["predict_transfer_baseline"] == 7 * 2 + 2
    assert planned["fetch_dataset"] == planned["prepare_dataset"] == planned["encode_images"] == 1
    assert not {"train_stage", "predict", "predict_baseline", "make_folds", "tabulate", "compare_schedules"} & set(
        planned
    )
    assert own == {path: path.read_bytes() for path in own}, "the study's own tables are as they were"
    assert not study.planned()


def test_every_schedule_fold_and_seed_answers_the_test_part_of_the_other_data_set(finished):
    study, *_ = finished
    asked = {
        row["question_id"]: row
        for row in read_table(study.results / "data/rad/questions.parquet")
        if row["split"] == "test"
    }
    assert len(asked) == 12
    files = sorted((study.results / "transfer/rad/test").glob("*/fold*/seed0.parquet"))
    assert [path.parts[-3:-1] for path in files] == [
        (arm, fold) for arm in ("1-2-3", "2-3") for fold in ("fold0", "fold1")
    ]
    for path in files:
        rows = read_table(path)
        assert {row["question_id"] for row in rows} == set(asked) and all(row["gold_logprob"] < 0 for row in rows)
        assert all((row["gold"], row["view"]) == (asked[row["question_id"]]["answer"], "test") for row in rows)


def test_baselines_answer_from_the_folds_and_in_domain_ones_from_the_data_sets_own_training_part(finished):
    study, *_ = finished
    medical = {row["question_id"]: row for row in read_table(study.results / "data/medical/questions.parquet")}
    folds = read_table(study.results / "data/medical/folds.parquet")
    own = [row["answer"] for row in read_table(study.results / "data/rad/questions.parquet") if row["split"] == "train"]
    for fold in ("fold0", "fold1"):
        answers = [
            medical[row["question_id"]]["answer"] for row in folds if (row["fold"], row["part"]) == (fold, "train")
        ]
        for name in ("majority", "nearest-images", "nearest-features", "classifier"):
            rows = read_table(study.results / f"transfer/rad/test/{name}/{fold}/untrained.parquet")
            assert len(rows) == 12 and {row["prediction"] for row in rows} <= set(answers)
            assert {(row["arm"], row["split"]) for row in rows} == {(name, fold)}
    rows = read_table(study.results / "transfer/rad/test/majority/shared/untrained.parquet")
    assert {row["arm"] for row in rows} == {"majority-in-domain"}
    [answer] = {row["prediction"] for row in rows}
    assert own.count(answer) == max(map(own.count, own))


def test_tables_of_their_own_have_intervals_and_the_comparison(finished):
    study, *_ = finished
    folder = study.results / "tables/transfer"
    assert {path.name for path in folder.iterdir()} == {f"rad.{kind}" for kind in ("csv", "json", "md", "tex")}
    table = read_csv(folder / "rad.csv", transfer.COLUMNS).set_index("arm")
    assert list(table.index[:2]) == ["1-2-3", "2-3"] and list(table.index[-2:]) == [
        "majority-in-domain", "majority-per-question-in-domain",
    ]  # fmt: skip
    assert set(table["questions"]) == {12} and list(table["folds"]) == [2] * 9 + [1] * 2
    assert (table["low"] <= table["all_mean"] + 1e-3).all() and (table["all_mean"] <= table["high"] + 1e-3).all()
    records = [
        row for path in (study.results / "transfer/rad/test/2-3").glob("*/*.parquet") for row in read_table(path)
    ]
    right = sum(row["prediction"].lower() == row["gold"].lower() for row in records)
    assert table.loc["2-3", "all_mean"] == pytest.approx(100 * right / 24, abs=1e-3)
    [row] = read_json(folder / "rad.json")["comparisons"]
    assert (row["first"], row["second"], row["questions"], row["runs"]) == ("1-2-3", "2-3", 12, 2)
    page = (folder / "rad.md").read_text()
    assert row["verdict"] in page and "the part `test` of rad, on which nothing was trained" in page
    assert "those in-domain, from the training part of rad itself" in page
    html = (study.results / "report.html").read_text()
    assert re.search(r'<section id="transfer">.*rad, part test.*majority-in-domain', html, re.DOTALL)


def test_the_audit_compares_what_is_trained_on_with_what_is_asked(finished):
    study, *_ = finished
    found = read_json(study.results / "data/audit.json")
    assert found["transfer"] == {"rad": {"same": [], "alike": []}}
    pairs = {(row["seen"], row["part"]) for row in found["overlaps"]}
    assert {("medical train", "rad test"), ("general-24 train", "rad test"), ("rad train", "rad test")} <= pairs
    assert ("rad", "medical test") not in pairs
    assert (
        "## Training images in rad, which nothing trains on\n\nNone." in (study.results / "data/audit.md").read_text()
    )


def test_another_part_is_other_answers(finished):
    study, *_ = finished
    try:
        study.config["evaluation"]["datasets"] = {"rad": "train"}
        planned = study.planned()
    finally:
        study.config["evaluation"]["datasets"] = {"rad": "test"}
    assert planned["predict_transfer"] == 4 and planned["audit_data"] == 1 and "train_stage" not in planned


def test_the_plan_and_the_status_count_its_jobs(finished, monkeypatch, capsys):
    from triptych.commands.estimate import hours
    from triptych.commands.jobs import job_states
    from triptych.commands.plan import lines

    study, *_ = finished
    monkeypatch.chdir(study.folder)
    loaded = load_study(json.loads(json.dumps(study.config)))
    states = job_states(loaded, now=0.0)
    text = "\n".join(lines(loaded, states))
    assert re.search(r"^predict_transfer +4 +4 +0$", text, re.M)
    assert re.search(r"^predict_transfer_baseline +16 +16 +0$", text, re.M)
    found = hours(loaded, states)
    assert set(found.of_transfer) == {("1-2-3", "rad"), ("2-3", "rad")} and min(found.of_transfer.values()) > 0


def test_images_that_are_trained_on_stop_the_study_before_they_are_asked(world, finished, tmp_path):
    study, *_ = finished
    train = json.loads((world / "slake/train.json").read_text())
    data = (world / "slake/imgs" / train[0]["img_name"]).read_bytes()
    leaking = {"image": [data, data], "question": ["what?", "where?"], "answer": ["red", "left"]}
    files = hub_files.vqa_rad() | {"data/test-00001-of-00002.parquet": hub_files.image_table(leaking)}
    other = {**RAD, "repo": "some/leak"}
    study.config["datasets"]["leak"] = other
    study.config["evaluation"]["datasets"] = {"rad": "test", "leak": "test"}
    try:
        with Hub({"datasets/some/leak": files}, tokens=[KEY]), pytest.raises(AssertionError) as told:
            study.snakemake()
    finally:
        del study.config["datasets"]["leak"]
        study.config["evaluation"]["datasets"] = {"rad": "test"}
    assert "evaluation.datasets: 1 images of leak are trained on:" in str(told.value)
    assert not (study.results / "transfer/leak").exists()
