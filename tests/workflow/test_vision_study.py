"""What the rules give to steps of prefixes that have trained the vision encoder, and to no others."""

import re

from conftest import Study, toy_config

ENCODER = "--vision-encoder results/models/vision_encoder/manifest.json"


def test_steps_get_the_encoder_where_it_has_trained_and_nothing_else_changes(world, tmp_path):
    config = toy_config(world)
    plain = commands(Study(tmp_path, config))
    rates = {"connector": 1e-2, "vision_encoder": 1e-3}
    seeing = {**config["stages"]["2"], "train": list(rates), "learning_rate": rates}
    config["stages"]["2v"] = seeing
    config["schedules"] = [["2v", "3"], ["2", "3"]]
    found = commands(Study(tmp_path, config))
    trained = {name: line for name, line in found.items() if name.startswith(("Train ", "Probe "))}
    assert len(trained) == 8 + 6
    for name, line in trained.items():
        assert (ENCODER in line) == ("2v" in name), name
        assert "--vision-encoder  --language-model" in line or ENCODER in line
    for name in plain.keys() & found.keys():
        assert plain[name] == found[name], "what exists already is computed as before"
    assert any(name.startswith("Train 2-3") for name in plain.keys() & found.keys())


def commands(study):
    """Description of each training and probe of a dry run -> its command."""
    text = study.snakemake("--dry-run", "--printshellcmds")
    pairs = re.findall(r"((?:Train|Probe) .*)\n[\s\S]*?(OMP_NUM_THREADS=\d+ .*)", text)
    return {name: line for name, line in pairs if "triptych.train" in line or "evaluate.probe" in line}
