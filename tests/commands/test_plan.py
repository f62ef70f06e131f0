"""The plan: shared trainings, costs, calibration by finished trainings, disk, and what the grid can find."""

import json
import math
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT, toy_config
from triptych.commands import cost, estimate, plan
from triptych.commands.jobs import job_states
from triptych.commands.retraining import refuse_to_retrain, short_reason
from triptych.config import paths
from triptych.config.grid import Checkpoint
from triptych.config.study import load_study
from triptych.errors import TriptychError
from triptych.evaluate.statistics import minimum_detectable_effect
from triptych.io.manifest import write_json, write_record


def config(name):
    return yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())


def at(results, config):
    """A study whose results are in a folder."""
    return replace(load_study(config), results=results)


@pytest.fixture
def study(world, tmp_path):
    return at(tmp_path / "results", {**toy_config(world), "seeds": [0, 1]})


def finish(study, prefix, seconds):
    """Mark every training of a prefix as done, having taken so long."""
    for cell in study.grid.checkpoints:
        if cell.prefix == prefix:
            name = f"{cell.prefix}/{cell.split}/seed{cell.seed}"
            metrics = {"epoch": 1, "validation_loss": 1.0, "validation_accuracy": 0.5}
            write_json(study.results / f"checkpoints/{name}/manifest.json", {"metrics": metrics})
            times = study.results / f"benchmarks/train_stage/{name}.jsonl"
            times.parent.mkdir(parents=True, exist_ok=True)
            times.write_text(json.dumps({"s": seconds}) + "\n")


def test_the_rate_that_was_measured_on_the_gpus_is_used_before_any_training(study):
    assumed = estimate.hours(study, job_states(study, now=0.0)).rate
    write_record(study.path(paths.DOCTOR), {"rates": {"login node": {}, "nodes": {"cpu_tflops": 0.1}}})
    assert estimate.hours(study, job_states(study, now=0.0)).rate == assumed
    write_record(study.path(paths.DOCTOR), {"rates": {"nodes": {"cpu_tflops": 0.1}, "gpu": {"gpu_tflops": 181.04}}})
    states = job_states(study, now=0.0)
    assert estimate.hours(study, states).rate == pytest.approx(assumed * 181 / 362)
    assert "assumed: 181 TFLOP/s at 10% utilisation (measured by triptych doctor" in "\n".join(
        plan.lines(study, states)
    )


def test_shared_first_stages_are_counted_once(study):
    alone = plan.unshared(study)
    # Two folds and two seeds: of two schedules, each would train its own first stage for every fold.
    assert alone == {"1": 4, "2": 4, "1-2": 4, "2-3": 4, "1-2-3": 4}
    trained = [cell.prefix for cell in study.grid.checkpoints]
    assert trained.count("1") == 2 and trained.count("1-2") == 4


def test_costs_grow_with_epochs_and_images_and_a_blind_stage_has_none(tmp_path):
    study = config("config")
    model = cost.model_sizes(at(tmp_path, study), "2-3")
    assert (model.weights, model.image_tokens, model.known) == (1.1e9, 576, False)

    def costs(prefix):
        return cost.training_cost(at(tmp_path, study), Checkpoint(prefix, "", 0))

    before = costs("2-3")
    assert costs("3blind").flops < 0.4 * before.flops
    batch = study["stages"][3]["batch_size"] = study["stages"][3].get("batch_size", 16)
    study["stages"][3]["questions_per_image"] = batch
    assert costs("2-3") == before
    study["stages"][3]["questions_per_image"] = 1  # about eleven questions share an image otherwise
    assert costs("2-3").flops > 5 * before.flops and costs("2-3").samples == before.samples
    del study["stages"][3]["questions_per_image"]
    study["stages"][3]["epochs"] *= 2
    after = costs("2-3")
    assert 1.8 < after.flops / before.flops < 2 and after.samples > 1.8 * before.samples
    # 5972 questions, four folds of five, nine tenths of these, six epochs; and validations.
    assert before.samples == pytest.approx(5972 * 0.8 * (0.9 * 6 + 0.1 * 7 * cost.PREDICTION), rel=1e-6)
    study["stages"][3]["epochs"] = 6
    asked = 5972 * 0.8 * 0.1 * 7 * cost.PREDICTION
    for samples, seen in ((1000, 6000), (100_000, 5972 * 0.8 * 0.9 * 6)):  # a limit of what every epoch goes through
        study["stages"][3]["max_samples"] = samples
        assert costs("2-3").samples == pytest.approx(seen + asked, rel=1e-6)
    study["stages"][3] |= {"train": [], "epochs": None, "learning_rate": {}}
    assert costs("2-3").samples == pytest.approx(asked / 7, rel=1e-6)


def tuned(optimizer="adamw", **settings):
    """The full study, whose last stage trains the language model."""
    study = config("config")
    rates = {"connector": 2e-5, "language_model": 1e-5}
    study["stages"][3] |= {"train": list(rates), "learning_rate": rates, "optimizer": optimizer, **settings}
    return study


def test_a_language_model_that_trains_costs_half_as_much_again(tmp_path):
    lora, whole = (cost.training_cost(at(tmp_path, s), Checkpoint("2-3", "", 0)) for s in (config("config"), tuned()))
    assert whole.samples == lora.samples and 1.4 < whole.flops / lora.flops < 1.5, "validations cost what they did"


@pytest.mark.parametrize(("optimizer", "size"), [("adamw", 20), ("adafactor", 12), ("adamw-8bit", 14)])
def test_the_plan_says_what_memory_a_language_model_needs(tmp_path, optimizer, size):
    """Of 1.1 billion weights: 4 bytes, 4 of the gradient, 2 and 2 of the copy in bf16 and its gradient; and moments."""
    study = at(tmp_path, tuned(optimizer))
    gb = {name: 1.1 * bytes_each for name, bytes_each in {"adamw": 20, "adafactor": 12, "adamw-8bit": 14}.items()}
    assert cost.training_gb(study, "2-3") == pytest.approx(1.1 * size) == pytest.approx(gb[optimizer])
    lines = [line for line in plan.memory_lines(study) if line.startswith("memory")]
    own = f"memory      2-3: {gb[optimizer]:.0f} GB of its device for the language model's weights, gradients and "
    [line] = [line for line in lines if line.startswith(own)]
    assert all(f"{gb[name]:.0f} with {name}" in line for name in gb if name != optimizer)
    in_fp32 = at(tmp_path, tuned(optimizer) | {"training": {"precision": "fp32"}})
    assert cost.training_gb(in_fp32, "2-3") == pytest.approx(1.1 * (size - 4))
    assert list(plan.memory_lines(at(tmp_path, config("config")))) == []


def test_checkpoints_and_saved_states_of_a_language_model_take_room(tmp_path):
    study = at(tmp_path, tuned())
    number = sum(study.grid.stage_of(cell.prefix).train[-1] == "language_model" for cell in study.grid.trainings)
    before, after = (estimate.disk_gb(at(tmp_path, one))[1] for one in (config("config"), tuned()))
    states = 15 * 2 * 1.1 * 12  # of weights and two moments, with 15 trainings at once
    assert after - before == pytest.approx(number * 1.1 * 4 + states, rel=0.02)
    small = estimate.disk_gb(at(tmp_path, tuned("adafactor")))[1]
    assert after - small == pytest.approx(15 * 2 * 1.1 * 8, rel=0.02)
    best = estimate.disk_gb(at(tmp_path, tuned(select="best")))[1]
    assert best - after == pytest.approx(15 * 2 * 1.1 * 4, rel=0.02)


@pytest.mark.parametrize(
    ("installed", "device", "said"),
    [(False, "auto", "needs bitsandbytes, which is not"), (True, "cpu", "needs a GPU"), (True, "auto", None)],
)
def test_the_plan_says_what_an_optimiser_lacks(tmp_path, monkeypatch, installed, device, said):
    monkeypatch.setattr("triptych.utils.optional.find_spec", lambda name: installed or None)
    study = at(tmp_path, tuned("adamw-8bit") | {"runtime": {"device": device}})
    found = [line for line in plan.memory_lines(study) if line.startswith("optimizer")]
    assert [f"optimizer   adamw-8bit {said}" in line for line in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("installed", "device", "said"),
    [(False, "auto", "needs bitsandbytes, which is not"), (True, "cpu", "needs a GPU"), (True, "auto", None)],
)
def test_the_plan_says_what_a_language_model_in_4_bits_lacks(tmp_path, monkeypatch, installed, device, said):
    monkeypatch.setattr("triptych.utils.optional.find_spec", lambda name: installed or None)
    study = config("config") | {"runtime": {"device": device}}
    assert list(plan.memory_lines(at(tmp_path, study))) == []
    study["ablations"] = {"four": {"models": {"language_model": {"quantise": "nf4"}}}}  # of an ablation alone
    found = list(plan.memory_lines(at(tmp_path, study)))
    assert [f"quantise    nf4 {said}" in line for line in found] == ([True] if said else [])


def test_features_above_the_budget_take_no_room(tmp_path):
    study = config("config")
    stored, _ = estimate.disk_gb(at(tmp_path, study))
    study["features"] = {"budget_gb": 1}  # of SLAKE's 642 images 0.6 GB, of 30,000 others more
    few, _ = estimate.disk_gb(at(tmp_path, study))
    assert 0.1 < few < 1 < stored


def test_finished_trainings_correct_the_rate_and_state_the_error(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = estimate.hours(study, job_states(study, 0.0))
    assert first.measured == 0 and first.error is None
    assert first.rate == study.settings.plan.tflops * 1e12 * study.settings.plan.utilisation
    finish(study, "1", seconds=1800)
    later = estimate.hours(study, job_states(study, 0.0))
    assert later.measured == 2 and later.of_training["1"] == pytest.approx(0.5) and later.error == pytest.approx(0)
    assert later.done == pytest.approx(1.0)
    assert later.left == pytest.approx(
        sum(later.of_training[cell.prefix] for cell in study.grid.checkpoints if cell.prefix != "1")
        + 2 * 2 * 2 * (3 + cost.GOLD) * later.of_prediction["2-3"]  # schedules x folds x seeds x views
    )


def test_the_error_of_estimates_is_that_of_each_from_the_others(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish(study, "1", seconds=100)
    path = study.results / "benchmarks/train_stage/1/shared/seed1.jsonl"
    path.write_text('{"s": 200}\n')
    found = estimate.hours(study, job_states(study, 0.0))
    assert found.error == pytest.approx(0.75)  # 200 for 100, and 100 for 200: off by 100 % and by 50 %


def test_more_folds_and_seeds_find_less_and_one_run_finds_nothing(tmp_path):
    def finds(folds, seeds, group="image"):
        study = config("config")
        study["folds"] |= {"number": folds, "group": group}
        return estimate.detectable(at(tmp_path, {**study, "seeds": list(range(seeds))}))[0]

    assert finds(10, 3) < finds(5, 3) < finds(5, 1) < finds(3, 1)
    assert math.isinf(finds(1, 1, "official"))
    # By hand, five folds and three seeds: runs 2.8 points, factor 1 + 15 / 4; a fifth of 5,972 answers differ.
    number, images = 5972, 5972 // 11
    variance = (1 + 15 / 4) * 2.8**2 / 15 + 1e4 * 0.2 * (1 + (number / images - 1) * 0.02) / number
    assert finds(5, 3) == pytest.approx(minimum_detectable_effect(variance**0.5, 14))


def test_what_was_compared_takes_the_place_of_the_assumptions(study):
    rows = [{"detectable": 3.0}, {"detectable": 5.0}, {"detectable": 4.0}]
    write_json(study.results / "tables/comparison.json", {"comparisons": rows})
    assert estimate.detectable(study) == (3.0, True), "the primary comparison"
    write_json(study.results / "tables/comparison.json", {"comparisons": []})
    assert not estimate.detectable(study)[1]


@pytest.mark.parametrize(
    "name", ["config", "demo", "taste", "slake-cpu", "slake-official", "slake-leak", "original", "ablations"]
)
def test_every_configuration_can_be_planned_before_anything_is_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = at(tmp_path / "results", config(name))
    text = "\n".join(plan.lines(study, job_states(study, 0.0)))
    for said in ("train_stage", "shared", "remaining", "estimate    assumed", "disk", "detects", "not prepared yet"):
        assert said in text
    assert not list(tmp_path.iterdir())


def test_of_a_large_archive_only_the_images_that_are_read_are_counted(tmp_path):
    study = config("config")
    some = {"general-30000": pytest.approx(33_000 * 49e-6)}
    assert estimate.fetched_gb(at(tmp_path, study)) == some  # a tenth more than are used
    text = "\n".join(plan.lines(at(tmp_path, study), []))
    assert "download    1.6 GB of images" in text and "3.2 GB images" in text and "TOO LITTLE" not in text
    study["plan"] = {"disk_gb": 3}
    assert "TOO LITTLE" in "\n".join(plan.lines(at(tmp_path, study), []))
    study["datasets"]["general"]["sizes"] = [10_000, 30_000]  # the smaller is a part of the larger
    study["stages"]["1-10k"] = {**study["stages"][1], "data": "general-10000"}
    study["schedules"] = [*study["schedules"], ["1-10k", 2, 3]]
    assert estimate.fetched_gb(at(tmp_path, study)) == some
    study["datasets"]["general"]["sizes"] = "all"
    del study["stages"]["1-10k"], study["schedules"][-1]
    for stage in study["stages"].values():
        stage["data"] = stage["data"].replace("general-30000", "general-all") if "data" in stage else "medical"
    assert estimate.fetched_gb(at(tmp_path, study)) == {"general-all": pytest.approx(27.35, abs=0.01)}
    assert estimate.fetched_gb(at(tmp_path, config("demo"))) == {}


def test_reasons_name_the_setting_that_changed():
    before = '{"stage":{"epochs":1,"learning_rate":{"connector":0.001}},"seed":0}'
    now = '{"stage":{"epochs":2,"learning_rate":{"connector":0.001}},"seed":0}'
    reason = f"Params have changed since last execution: Union across all output: before: '{before}' now: '{now}'"
    assert short_reason(reason) == "stage.epochs 1 -> 2"
    assert short_reason("Input files updated by another job: a, b") == "its inputs are made again"
    assert short_reason("Missing output files: x") == "Missing output files: x"


def test_a_few_may_be_made_again_and_more_are_refused_by_name():
    again = [("2 on fold0, seed 0", "Missing output files: x"), ("2 on fold1, seed 0", "Updated input files: y")]
    refuse_to_retrain(again, at_most=2)
    with pytest.raises(TriptychError, match="2 finished training jobs would run again") as caught:
        refuse_to_retrain(again, at_most=1)
    assert "2 on fold1, seed 0: Updated input files: y" in str(caught.value)


def bench_result(study, **record):
    stages = {"stage 2": {"plan_tflops": 30.0}, "stage 3": {"plan_tflops": 60.0}}
    write_json(
        study.results / "bench.json", {"tiny": False, "parts": {**stages, "device": {"device": "L40S"}}, **record}
    )


def test_rates_of_the_benchmark_are_used_until_trainings_have_finished(study):
    assumed = estimate.hours(study, job_states(study, now=0.0))
    bench_result(study)
    benched = estimate.hours(study, job_states(study, now=0.0))
    assert benched.rate == pytest.approx(40e12) and benched.benched == "L40S"
    assert benched.of_training["2"] == pytest.approx(assumed.of_training["2"] * assumed.rate / 40e12)
    assert "at 40 TFLOP/s, as `triptych bench` measured on L40S" in "\n".join(plan.lines(study, job_states(study, 0.0)))
    finish(study, "2", 100.0)
    known = estimate.hours(study, job_states(study, now=0.0))
    assert known.measured and known.benched is None and known.rate != benched.rate


@pytest.mark.parametrize("record", [{"tiny": True}, {"parts": {"stage 2": {"error": "x"}}}, {"parts": {}}])
def test_a_benchmark_that_measured_no_training_changes_no_estimate(study, record):
    before = estimate.hours(study, job_states(study, now=0.0))
    bench_result(study, **record)
    assert estimate.hours(study, job_states(study, now=0.0)) == before
