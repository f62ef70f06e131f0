"""A study in a folder of its own: the configuration's words stay, its results do not reach another study's."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from triptych.commands import checkout, new, run
from triptych.commands.cluster import read_profile
from triptych.config.study import read_study
from triptych.errors import TriptychError

CONFIGURATIONS = sorted((ROOT / "config").glob("*.yaml"))


@pytest.mark.parametrize("start", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_can_be_started_from(start, tmp_path, capsys):
    new.main([str(tmp_path / "one/mine"), "--from", str(start)])
    made = tmp_path / "one/mine/study.yaml"
    before, after = read_study(start), read_study(made)
    assert str(after.results) == "results"
    fields = dict.fromkeys(type(before.settings).model_fields)
    fields.pop("pathvars")
    assert all(getattr(before.settings, key) == getattr(after.settings, key) for key in fields)
    lines = zip(start.read_text().splitlines(), made.read_text().splitlines(), strict=True)
    changed = [(one, other) for one, other in lines if one != other]
    assert len(changed) <= 2 and all("results" in one or "schema" in one for one, _ in changed)
    assert "triptych run --configfile study.yaml" in capsys.readouterr().out


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TriptychError, match="is not empty; name a new folder"):
        new.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_no_configuration_starts_nothing(tmp_path):
    (tmp_path / "bad.yaml").write_text("seeds: none\n")
    with pytest.raises(TriptychError):
        new.main([str(tmp_path / "mine"), "--from", str(tmp_path / "bad.yaml")])
    assert not (tmp_path / "mine").exists()


def test_results_in_a_form_that_is_not_found_are_asked_for_by_hand(tmp_path):
    text = (ROOT / "config/demo.yaml").read_text() + '\npathvars: {"results": "else/where"}\n'
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(TriptychError, match="by hand"):
        new.main([str(tmp_path / "mine"), "--from", str(tmp_path / "odd.yaml")])


def test_a_profile_is_found_where_snakemake_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    assert checkout.profile_path("profiles/local") == ROOT / "profiles/local"
    for name in ("profiles/no", "no"):
        with pytest.raises(TriptychError, match=f"{name}: no profile is there; name a folder with profile.yaml"):
            checkout.profile_path(name)
    assert str(checkout.profile_path("none")) == "none" and read_profile(Path("none")) == {}, "as Snakemake's option"
    (tmp_path / "profiles/local").mkdir(parents=True)
    assert checkout.profile_path("profiles/local") == ROOT / "profiles/local", "an empty folder is none"
    for file in ("profiles/local/config.yaml", "home/snakemake/mine/profile.v9+.yaml", "profiles/small.yaml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"jobs: {file}\n")
    assert str(checkout.profile_path("profiles/local")) == "profiles/local", "the study's comes first"
    assert checkout.profile_path("mine") == tmp_path / "home/snakemake/mine"
    small = checkout.profile_path("profiles/small.yaml")
    assert read_profile(small) == {"jobs": "profiles/small.yaml"}, "not the one beside it"


def test_of_a_profiles_files_the_newest_for_this_snakemake_is_read(tmp_path):
    for file in ("config.yaml", "profile.yaml", "profile.v8+.yaml", "profile.v9+.yaml", "profile.v77+.yaml", "x.yaml"):
        (tmp_path / file).write_text(f"jobs: {file}\n")
    for file in ("profile.v9+.yaml", "profile.v8+.yaml", "profile.yaml", "config.yaml"):
        assert read_profile(tmp_path) == {"jobs": file}
        (tmp_path / file).unlink()
    assert read_profile(tmp_path) == {}


def test_snakemake_is_given_what_a_folder_of_a_study_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkout.snakemake_command(["--cores", "1"])[3:] == ["--snakefile", f"{ROOT}/Snakefile", "--cores", "1"]
    assert "--snakefile" not in checkout.snakemake_command(["-s", "mine.smk"])
    (tmp_path / "Snakefile").touch()
    assert checkout.snakemake_command(["test", "--cores", "1"])[3:] == ["test", "--cores", "1"]
    options = ["--config", "a=1", "--profile", "profiles/local", "plan", "--profile=profiles/aire"]
    found = f"--config a=1 --profile {ROOT}/profiles/local plan --profile={ROOT}/profiles/aire"
    assert checkout.with_profiles_found(options) == found.split(), "all else stays in its order"


def test_a_target_of_run_is_no_configuration(tmp_path, monkeypatch):
    """Snakemake takes all words that follow --configfile for configurations."""
    shutil.copy(ROOT / "config/taste.yaml", tmp_path / "study.yaml")
    monkeypatch.chdir(tmp_path)
    commands = []

    def started(command, **_):
        commands.append(command)
        raise TriptychError("enough")

    monkeypatch.setattr(run.subprocess, "Popen", started)
    for words in ("test --configfile study.yaml", "--configfile study.yaml test"):
        with pytest.raises(TriptychError, match="enough"):
            run.main([*words.split(), "--cores", "1"])
        assert commands[-1][-2:] == ["--configfile", "study.yaml"] and "test" in commands[-1]
        monkeypatch.chdir(tmp_path)
