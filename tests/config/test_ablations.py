"""Ablations: what they share and are called, what a wrong one is told, and a toy study that trains some."""

import json
from dataclasses import replace

import pandas
import pytest
import yaml
from conftest import ROOT, Study, toy_config
from triptych.commands import estimate, plan
from triptych.commands.jobs import job_states, jobs
from triptych.config.ablations import merged
from triptych.config.grid import Checkpoint
from triptych.config.jobs import TrainingJob, training_text
from triptych.config.stages import Vision
from triptych.config.study import load_study, read_study
from triptych.errors import TriptychError
from triptych.io.manifest import canonical_json, read_json, sha256_file

HUB = {"source": "hub", "repo": "a/b", "revision": "0" * 40, "prompt": "<image>{question}"}


def with_ablations(config: dict, text: str) -> dict:
    """A configuration with ablations as a user writes them."""
    return {**config, "ablations": yaml.safe_load(text)}


@pytest.fixture
def study(demo_config) -> dict:
    """The demonstration, with two sizes of the general data."""
    demo_config["datasets"]["general"]["sizes"] = [250, 500]
    return demo_config


WAYS = {
    "linear: {connector: {kind: linear}}": ["1+linear", "1+linear-2", "1+linear-2-3"],
    "rank-4: {lora: {rank: 4}}": ["1", "1-2", "1-2-3+rank-4"],
    "seeing: {stages: {3: {train: [connector, lora, vision_encoder], learning_rate: {vision_encoder: 1.0e-5}}}}": [
        "1",
        "1-2",
        "1-2-3+seeing",
    ],
    "early: {stages: {2: {train: [connector, vision_encoder], learning_rate: {vision_encoder: 1.0e-5}}}}": [
        "1",
        "1-2+early",
        "1-2+early-3",
    ],
    "pooled: {connector: {kind: pooled-mlp, pool: 7}}": ["1+pooled", "1+pooled-2", "1+pooled-2-3"],
    "half: {stages: {1: {data: general-250}}}": ["1+half", "1+half-2", "1+half-2-3"],
    "slow: {stages: {2: {learning_rate: {connector: 1.0e-4}}}}": ["1", "1-2+slow", "1-2+slow-3"],
    "cosine: {stages: {2: {regularisation: {kind: reconstruct, weight: 0.5}}}}": ["1", "1-2+cosine", "1-2+cosine-3"],
    "no-general: {schedule: [2, 3], lora: {rank: 4}}": ["2", "2-3+no-general"],
    "short: {schedule: [1, 3], lora: {rank: 4}}": ["1", "1-3+short"],
    f"other: {{models: {{language_model: {HUB}}}}}": ["1+other", "1+other-2", "1+other-2-3"],
    "finer: {models: {vision_encoder: {image_size: 288}}}": ["1+finer", "1+finer-2", "1+finer-2-3"],
}


@pytest.mark.parametrize(("text", "way"), WAYS.items())
def test_the_name_of_an_ablation_stands_where_it_departs(study, text, way):
    found = load_study(with_ablations(study, text))
    assert found.grid.schedules == ["1-2-3", "2-3", way[-1]]
    assert found.grid.lineage[way[-1]] == way
    for prefix, before in zip(way[1:], way, strict=False):
        [cell, *_] = [cell for cell in found.grid.checkpoints if cell.prefix == prefix]
        assert found.grid.parent(cell).prefix == before


def test_ablations_share_with_each_other_whatever_is_trained_alike(study):
    text = """
    finer: {models: {vision_encoder: {image_size: 288}}}
    finer-rank: {models: {vision_encoder: {image_size: 288}}, lora: {rank: 4}}
    rank: {schedule: [1, 3], lora: {rank: 4}}
    rank-2: {schedule: [1, 3], lora: {rank: 2}}
    slow: {stages: {2: {samples: 50}}}
    slow-rank: {stages: {2: {samples: 50}}, lora: {rank: 4}}
    """
    found = load_study(with_ablations(study, text))
    assert found.grid.schedules[2:] == [
        *("1+finer-2-3", "1+finer-2-3+finer-rank", "1-3+rank", "1-3+rank-2"),
        *("1-2+slow-3", "1-2+slow-3+slow-rank"),
    ]
    assert list(found.grid.models) == ["vision_encoder", "language_model", "vision_encoder+finer"]
    assert found.grid.used_features == ["general-500", "general-500+finer", "medical", "medical+finer"]
    # Six schedules more: 3 folds x (stage 2 and 3 of finer, 3 of finer-rank, rank, rank-2, 2 and 3 of slow, 3 of
    # slow-rank), and the first stage of finer.
    assert len(found.grid.checkpoints) == 13 + 3 * 8 + 1


def test_an_ablation_trains_with_its_own_settings_and_all_else_as_the_base_does(study):
    text = "slow: {stages: {3: {learning_rate: {connector: 1.0e-4}}}, lora: {rank: 4}}"
    found = load_study(with_ablations(study, text))
    base, other = (
        json.loads(TrainingJob.of(found, Checkpoint(prefix, "fold0", 0)).text()) for prefix in ("1-2-3", "1-2-3+slow")
    )
    assert base["stage"]["learning_rate"] == {"connector": 5e-4, "lora": 2e-3}
    assert other["stage"]["learning_rate"] == {"connector": 1e-4, "lora": 2e-3}
    assert (base["lora"]["rank"], other["lora"]["rank"]) == (8, 4) and other["lora"]["dropout"] == 0.0
    base["stage"]["learning_rate"] = other["stage"]["learning_rate"]
    assert {**base, "lora": other["lora"], "prefix": other["prefix"]} == other


@pytest.mark.parametrize("name", ["config", "demo", "original", "slake-cpu", "slake-leak", "slake-official", "taste"])
def test_the_trainings_of_a_plain_study_are_what_they_were_before_there_were_ablations(name):
    config = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    found = load_study(config)
    with_one = load_study({**config, "ablations": {"rank": {"lora": {"rank": found.settings.lora.rank + 1}}}})
    parts = [schedule[:length] for schedule in found.settings.schedules for length in range(1, len(schedule) + 1)]
    assert {"-".join(part) for part in parts} == set(found.grid.prefixes)
    for cell in found.grid.checkpoints:
        stages = cell.prefix.split("-")
        stage = found.settings.stages[stages[-1]]
        job = {"prefix": cell.prefix, "split": cell.split, "seed": cell.seed, "stage_name": stages[-1]}
        job |= {"stage": stage.model_dump(by_alias=True), "connector": found.settings.connector.model_dump()}
        job["lora"] = found.settings.lora.model_dump() if "lora" in stage.train else None
        job["training"] = found.settings.training.model_dump()
        for study in (found, with_one):
            assert TrainingJob.of(study, cell).text() == training_text(study, cell) == canonical_json(job)
    assert list(found.grid.models) == ["vision_encoder", "language_model"] and found.grid.tags == [""]
    assert set(found.grid.checkpoints) < set(with_one.grid.checkpoints)


def test_what_belongs_to_a_changed_value_does_not_survive_it():
    pooled = {"kind": "pooled-mlp", "pool": 2}
    assert merged(pooled, {"kind": "linear"}) == {"kind": "linear"}
    assert merged(pooled, {"pool": 3}) == {"kind": "pooled-mlp", "pool": 3}
    hub = {"source": "hub", "repo": "a/b", "revision": "1", "layer": -1}
    assert merged(hub, {"repo": "a/c", "revision": "2"}) == {**hub, "repo": "a/c", "revision": "2"}
    assert merged(hub, {"repo": "a/c"}) == {"source": "hub", "repo": "a/c", "layer": -1}
    assert merged(hub, {"source": "package"}) == {"source": "package"}
    stage = {"train": ["connector", "lora"], "learning_rate": {"connector": 1, "lora": 2}}
    stage |= {"lr_schedule": "cosine", "warmup_ratio": {"connector": 0.1, "lora": 0.2}, "weight_decay": 0}
    only = merged(stage, {"train": ["connector"], "warmup_ratio": {"connector": 0.3}})
    assert only["learning_rate"] == {"connector": 1} and only["warmup_ratio"] == {"connector": 0.3}
    assert merged({"sizes": [1, 2], "a": {"b": 1, "c": 2}}, {"sizes": [3], "a": {"b": 0}}) == {
        "sizes": [3],
        "a": {"b": 0, "c": 2},
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x: {lora: {rnk: 4}}", "ablations.x.lora.rnk: not a known setting; did you mean 'rank'?"),
        ("x: {lra: {rank: 4}}", "ablations.x.lra: not a known setting; did you mean 'lora'?"),
        ("x: {lora: 4}", "ablations.x.lora: must be a mapping of keys to values, not 4"),
        ("x: {lora: {rank: many}}", "ablations.x.lora.rank: must be a whole number, not the text 'many'"),
        ("x: {seeds: [3]}", "ablations.x.seeds: not a known setting"),
        ("x: {connector: {kind: pooled-mlp}}", "ablations.x.connector: pool is required for kind pooled-mlp, and"),
        ("x: {stages: {2: {epochs: -3}}}", "ablations.x.stages.2.epochs: must be greater than 0, not -3"),
        ("x: {stages: {4: {epochs: 3}}}", "ablations.x.stages: '4', which is not under stages: (known: 1, 2, 3)"),
        ("x: {stages: {1: {data: general-50}}}", "ablations.x.stages.1.data: 'general-50', which is not under"),
        ("x: {schedule: [2, 4], lora: {rank: 4}}", "ablations.x: '2-4' uses stage '4', which is not under stages:"),
        ("x: {schedule: 2-3, lora: {rank: 4}}", "ablations.x.schedule: must be a list of stage names, such as [2, 3]"),
        ("x: {schedule: [1], lora: {rank: 4}}", "ablations.x: '1' must end on a stage that uses medical"),
        ("x: {models: {encoder: {layer: 3}}}", "ablations.x.models.encoder: must be 'vision_encoder', "),
        ("x: {models: {vision_encoder: {layer: 3}}}", "ablations.x.models.vision_encoder.layer: not a known setting"),
        ("x: {models: {vision_encoder: {source: hub, repo: a/b}}}", "models.vision_encoder.revision: required"),
        ("x: {}", "ablations.x: changes nothing; name what differs from the base: models, connector, lora, stages"),
        ("x: {schedule: [1, 3]}", "ablations.x: changes nothing but the schedule, which belongs under schedules"),
        ("x: {lora: {rank: 8}}", "ablations.x.lora: changes nothing: the base has these values"),
        ("x: {connector: {kind: mlp2x_gelu}}", "ablations.x.connector: changes nothing: the base has these values"),
        ("x: {models: {vision_encoder: {image_size: 160}}}", "ablations.x.models.vision_encoder: changes nothing"),
        ("x: {schedule: [1, 2], lora: {rank: 4}}", "ablations.x.lora: changes nothing: no stage of '1-2' trains lora"),
        ("x: {schedule: [2, 3], stages: {1: {epochs: 2}}}", "x.stages.1: changes nothing: '2-3' has no stage 1"),
        ("x: {stages: {2: {epochs: 1}}}", "ablations.x.stages.2: changes nothing: the base has these values"),
        ("x: {stages: {2: {regularisation: {kind: reconstruct}}}}", "ablations.x.stages.2: changes nothing"),
        ("{x: {lora: {rank: 4}}, y: {lora: {rank: 4}}}", "ablations.y: trains the same as '1-2-3+x', which already"),
        ("a b: {lora: {rank: 4}}", "ablations.a b: a name may hold letters, digits, '.', '+' and '-' only"),
    ],
)  # fmt: skip
def test_a_wrong_ablation_is_one_line(study, text, line):
    config = with_ablations(study, text)
    with pytest.raises(TriptychError) as caught:
        load_study(config, "study.yaml")
    [fault] = str(caught.value).splitlines()
    assert fault.startswith("study.yaml: ablations.") and line in fault


def test_ablations_that_begin_alike_may_stand_in_any_order(study):
    both = ["short: {stages: {2: {epochs: 3}}}", "short-slow: {stages: {2: {epochs: 3}, 3: {epochs: 5}}}"]
    for order, last in (
        (both, ["1-2+short-3", "1-2+short-3+short-slow"]),
        (both[::-1], ["1-2+short-slow-3", "1-2+short-slow-3+short"]),
    ):
        assert load_study(with_ablations(study, "\n".join(order))).grid.schedules[2:] == last


def test_two_trainings_never_get_one_name(study):
    both = "{x: {stages: {1: {epochs: 2}}}, x-2: {schedule: [1, 3], stages: {1: {epochs: 3}}}}"
    with pytest.raises(TriptychError, match=r"^study: ablations.x-2: '1\+x-2' is also the name of another prefix"):
        load_study(with_ablations(study, both), "study")
    study["stages"]["2+x"] = study["stages"][2]
    study["schedules"].append([1, "2+x", 3])
    with pytest.raises(TriptychError, match=r"^study: ablations.x: '1-2\+x' is also the name of another prefix"):
        load_study(with_ablations(study, "x: {stages: {2: {epochs: 2}}}"), "study")
    study["datasets"]["medical+finer"] = study["datasets"]["medical"]
    with pytest.raises(TriptychError, match=r"medical\+finer: is also the name of an ablation's features; rename one"):
        load_study(with_ablations(study, "finer: {models: {vision_encoder: {image_size: 288}}}"))


def test_costs_are_those_of_the_models_and_tokens_of_each_ablation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = load_study(yaml.safe_load((ROOT / "config/ablations.yaml").read_text()))
    found = replace(found, results=tmp_path)
    costs = estimate.hours(found, job_states(found, 0.0)).of_training
    assert costs["1+tokens-144"] < 0.5 * costs["1"] == 0.5 * costs["1+linear"]
    assert costs["1+smollm"] == pytest.approx(costs["1"] * 1.7 / 1.1)
    assert costs["1+general-10k"] < 0.5 * costs["1"] and costs["1-2+slow"] == costs["1-2"]
    alone, shared = plan.unshared(found), [cell.prefix for cell in found.grid.checkpoints]
    assert costs["1-2-3+dora"] == costs["1-2-3"] and 1.4 < costs["1-2-3+full"] / costs["1-2-3"] < 1.5
    assert [costs[f"1-2-3+{name}"] for name in ("rslora-64", "rank-64")] == [costs["1-2-3"]] * 2
    # The base and twelve ablations go through `1`: five folds and three seeds each, if each trained it for itself.
    assert alone["1"] == 13 * 15 and shared.count("1") == 3
    features = estimate.disk_gb(found)[0]
    plain = estimate.disk_gb(
        replace(load_study(yaml.safe_load((ROOT / "config/config.yaml").read_text())), results=tmp_path)
    )[0]
    assert 2 < features / plain < 2.5, "the other layer's features, and those of the smaller general set"


ABLATIONS = """
rank-3: {lora: {rank: 3}}
linear: {schedule: [2], connector: {kind: linear}}
last: {schedule: [2], models: {vision_encoder: {layer: -1}}}
asked: {schedule: [2], models: {language_model: {prompt: "assistant <image> {question} assistant "}}}
"""


@pytest.fixture(scope="module")
def toy(world, tmp_path_factory):
    """A small study of the toy world with ablations, planned and then run."""
    config = with_ablations(toy_config(world), ABLATIONS) | {"schedules": [["2", "3"]], "wandb": {"mode": "disabled"}}
    config["evaluation"] |= {"controls": [], "leak": None, "captions": None}
    study = Study(tmp_path_factory.mktemp("ablations"), config)
    study.jobs = study.planned()
    study.snakemake()
    return study


def test_ablations_add_their_own_jobs_only(toy):
    # Of two folds each: 2 and 2-3, and one training for every ablation; two encoders, two language models.
    expected = {"train_stage": 2 * (2 + 4), "predict": 2 * (1 + 4), "prepare_model": 4, "encode_images": 2}
    expected |= {"prepare_dataset": 1, "compare_schedules": 1, "probe": 2 + 6, "predict_baseline": 14}
    assert {rule: toy.jobs[rule] for rule in expected} == expected
    study = read_study(toy.folder / "study.yaml")
    counted = [job.rule for job in jobs(study)]
    assert {rule: counted.count(rule) for rule in set(counted)} == {rule: toy.jobs[rule] for rule in set(counted)}
    assert all((toy.folder / path).exists() for job in jobs(study) for path in job.outputs)


def test_every_ablation_is_trained_by_its_difference_and_is_a_row_of_the_tables(toy):
    arms = [
        "2-3",
        "2+asked",
        "2+last",
        "2+linear",
        "2-3+rank-3",
    ]  # the file has them sorted
    table = pandas.read_csv(toy.results / "tables/schedules.csv").set_index("arm")
    assert list(table.index)[:5] == arms and table.loc[arms, "trained"].all() and (table.loc[arms, "runs"] == 2).all()
    comparison = pandas.read_csv(toy.results / "tables/comparison.csv")
    assert [tuple(pair) for pair in comparison[["first", "second"]].to_numpy()] == [("2-3", arm) for arm in arms[1:]]
    assert set(pandas.read_csv(toy.results / "tables/stages.csv")["schedule"]) == set(arms)
    assert set(arms) < set(pandas.read_csv(toy.results / "tables/by_content.csv")["arm"])
    assert set(arms) < set(pandas.read_csv(toy.results / "tables/probe.csv")["representation"])

    def manifest(prefix):
        return read_json(toy.results / f"checkpoints/{prefix}/fold0/seed0/manifest.json")

    base = manifest("2")
    parent = sha256_file(toy.results / "checkpoints/2/fold0/seed0/manifest.json")
    assert manifest("2-3")["parent"] == manifest("2-3+rank-3")["parent"] == parent
    assert (manifest("2-3")["lora"]["rank"], manifest("2-3+rank-3")["lora"]["rank"]) == (2, 3)
    assert manifest("2+linear")["connector"]["kind"] == "linear"
    for prefix, differs in (("2+linear", set()), ("2+last", {"vision_encoder", "features"}), ("2+asked", {"prompt"})):
        other = manifest(prefix)
        same = {"language_model", "prompt", "vision_encoder", "features", "data", "stages", "samples"}
        assert {name for name in same if other[name] != base[name]} == differs
        assert other["metrics"]["validation_loss"] != base["metrics"]["validation_loss"]
    page = (toy.results / "report.html").read_text(encoding="utf-8")
    assert all(arm in page for arm in arms)


def test_taking_an_ablation_away_or_adding_one_trains_nothing_else_again(toy):
    kept = json.loads(json.dumps(toy.config))
    del toy.config["ablations"]["linear"]
    assert toy.trained() == set()
    toy.config["ablations"]["linear-rank"] = {"connector": {"kind": "linear"}, "lora": {"rank": 3}}
    assert toy.trained() == {
        *(f"{prefix}/fold{fold}" for prefix in ("2+linear-rank", "2+linear-rank-3") for fold in (0, 1))
    }
    toy.config = {**kept, "lora": {"rank": 5, "alpha": 4}}
    assert toy.trained() == {"2-3/fold0", "2-3/fold1"}, "the ablation states its rank itself"
    toy.config = kept


def test_settings_of_the_encoders_training_go_where_it_trains_no_more(study):
    rates = {"connector": 1e-3, "vision_encoder": 1e-5}
    study["stages"][2] |= {"train": list(rates), "learning_rate": rates, "vision": {"blocks": 3, "crop": 0.1}}
    text = "frozen: {stages: {2: {train: [connector]}}}\nlast: {stages: {2: {vision: {blocks: 1}}}}"
    grid = load_study(with_ablations(study, text)).grid
    assert grid.stage_of("1-2+frozen").vision == Vision()
    assert grid.stage_of("1-2+last").vision == Vision(blocks=1, crop=0.1)
    trained = {prefix: grid.has_trained(prefix, "vision_encoder") for prefix in grid.prefixes}
    assert trained == {prefix: "frozen" not in prefix and prefix not in ("1",) for prefix in grid.prefixes}
    found = [grid.features("medical", prefix) for prefix in grid.prefixes]
    assert set(found) == {"medical"}, "features are the frozen encoder's"
