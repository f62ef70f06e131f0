"""`triptych fetch --check` on config/config.yaml and a loopback hub, and the page of all pinned files."""

import re
from collections import namedtuple

import hub_files
import pytest
import yaml
from conftest import ROOT
from hub import Fault, Hub
from triptych.commands import fetch
from triptych.config.study import load_study, read_study
from triptych.config.yaml_file import read_yaml
from triptych.download import hub_http, huggingface
from triptych.errors import TriptychError

CONFIG = ROOT / "config" / "config.yaml"
SETTINGS = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
ENCODER, LANGUAGE_MODEL = (SETTINGS["models"][role]["repo"] for role in ("vision_encoder", "language_model"))
SLAKE, PRETRAIN = "datasets/BoKelvin/SLAKE", "datasets/liuhaotian/LLaVA-Pretrain"
DOWNLOADED = hub_files.downloaded(SETTINGS)


@pytest.fixture(scope="module")
def repositories():
    return hub_files.repositories(SETTINGS)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_http, "WAITS", (0, 0))


def check(capsys, configfile=CONFIG):
    """The printed text, and the error; '' where there is none."""
    try:
        fetch.main(["--check", "--configfile", str(configfile)])
    except TriptychError as error:
        return capsys.readouterr().out, str(error)
    return capsys.readouterr().out, ""


def test_every_file_of_the_study_is_asked_for_and_none_is_downloaded(repositories, tmp_path, capsys):
    files, revisions = repositories
    with Hub(files, revisions=revisions, page=3) as hub:
        text, error = check(capsys)
    assert not error
    rows = {(row.split()[0], row.split()[-1]) for row in text.splitlines() if row.startswith("  ")}
    assert rows == {(name, "ok") for names in DOWNLOADED.values() for name in names}
    for repo, revision in revisions.items():
        assert f"{repo.removeprefix('datasets/')} at {revision}" in text
    needed = sum(len(files[repo][name]) for repo, names in DOWNLOADED.items() for name in names)
    assert f"to download: {fetch._amount(needed)} in {sum(map(len, DOWNLOADED.values()))} files; " in text
    assert {request.line.split()[0] for request in hub.requests if "/tree/" not in request.line} == {"HEAD"}
    assert not list(tmp_path.iterdir())


def test_what_is_stored_is_neither_asked_for_nor_counted(repositories, tmp_path, capsys):
    files, revisions = repositories
    with Hub(files, revisions=revisions) as hub:
        huggingface.download("BoKelvin/SLAKE", "imgs.zip", revisions[SLAKE], tmp_path / "cache")
        hub.requests.clear()
        text, error = check(capsys)
    assert not error and re.search(r"imgs\.zip .* stored\n", text)
    assert hub.asked("imgs.zip") == 0
    assert f"in {sum(map(len, DOWNLOADED.values())) - 1} files" in text


def test_of_what_is_stored_the_hub_is_not_asked(repositories, tmp_path, capsys):
    files, revisions = repositories
    config = {"models": SETTINGS["models"], "cache": str(tmp_path / "store")}
    demo = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text(encoding="utf-8")) | config
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(demo))
    with Hub(files, revisions=revisions):
        for model in SETTINGS["models"].values():
            asked = huggingface.HubFiles("model", model["repo"], model["revision"], huggingface.MODEL_FILES)
            huggingface.model_folder(asked, tmp_path / "model", tmp_path / "store")
    text, error = check(capsys, tmp_path / "mine.yaml")  # no hub
    assert not error and " ok" not in text and "to download: 0 B in 0 files" in text


def test_all_faults_are_told_at_once(repositories, capsys):
    files, revisions = repositories
    files = files | {ENCODER: {"config.json": b"{}", "pytorch_model.bin": b"x"}}
    files[SLAKE] = {name: data for name, data in files[SLAKE].items() if name != "validation.json"}
    revisions = revisions | {PRETRAIN: "f" * 40}
    with Hub(files, revisions=revisions, gated={LANGUAGE_MODEL: {"hf_friend"}}):
        text, error = check(capsys)
    assert text.count("FAULT") == 1 + len(DOWNLOADED[LANGUAGE_MODEL]) + len(DOWNLOADED[PRETRAIN]) + 1
    for message in (
        rf"{ENCODER} has no safetensors at 41aec1c",
        rf"{LANGUAGE_MODEL}: cannot get model.safetensors at .*: access is restricted; accept its conditions on",
        r"liuhaotian/LLaVA-Pretrain: cannot get images.zip at 70f9d1e.*: the repository has no such revision",
        r"BoKelvin/SLAKE: cannot get validation.json at a9083ce.*: no such file at this revision",
    ):
        assert re.search(message, error), error


def test_another_server_and_a_busy_hub_are_faults(repositories, capsys):
    files, revisions = repositories
    strange = Fault("images.zip", status=200, body=b"<html>log in", times=9)
    busy = Fault(f"/api/models/{ENCODER}/tree", status=503, times=99)
    with Hub(files, strange, busy, revisions=revisions):
        _, error = check(capsys)
    assert "cannot get images.zip" in error and "answers as no hub does" in error and "check HF_ENDPOINT" in error
    assert f"{ENCODER}: cannot get the list of files" in error and "answers 503 Service Unavailable, 3 times" in error
    assert error.startswith("2 faults\n")


def test_a_small_disk_is_a_fault(repositories, monkeypatch, capsys):
    files, revisions = repositories
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: usage)
    with Hub(files, revisions=revisions):
        _, error = check(capsys)
    assert re.search(r"^1 fault\n/.*: .* too little space; set HF_HOME", error)


def test_models_of_ablations_count_and_a_data_set_of_two_sizes_once(repositories, tmp_path, capsys):
    study = read_study(ROOT / "config" / "ablations.yaml")
    asked = fetch.hub_files(study)
    assert "HuggingFaceTB/SmolLM2-1.7B-Instruct" in {files.repo for files in asked}
    config, _ = read_yaml(CONFIG)
    config["datasets"]["general"]["sizes"] = [10000, 30000]
    config["stages"] |= {"0": {**config["stages"][1], "data": "general-10000"}}
    config["schedules"] += [["0", 3]]
    named = {files.repo: names for files, names in fetch.hub_files(load_study(config)).items()}
    assert sorted(named["liuhaotian/LLaVA-Pretrain"]) == ["general-10000", "general-30000"]


def test_of_a_large_archive_only_what_is_needed_counts(repositories, capsys):
    files, revisions = repositories
    with Hub(files, Fault("images.zip", headers={"X-Linked-Size": "27356108382"}), revisions=revisions):
        text, error = check(capsys)
    assert not error
    assert "images.zip: of 27.4 GB, only the images that are needed are fetched\n" in text
    assert re.search(r"^  images\.zip +1\.6 GB  ok$", text, re.M) and "to download: 1.6 GB in" in text


def test_a_study_without_the_hub_asks_nothing(capsys):
    with Hub({}) as hub:
        assert check(capsys, ROOT / "config" / "demo.yaml") == ("nothing of this study comes from the hub\n", "")
    assert not hub.requests


def test_check_must_be_said(capsys):
    with pytest.raises(SystemExit):
        fetch.main([])
    assert "--check" in capsys.readouterr().err


def test_the_page_of_pinned_files_names_all_that_the_configurations_pin():
    """A row of docs/assets.md for each repository, with the revision and the files or patterns."""
    page = (ROOT / "docs" / "assets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (model|dataset) \| `([0-9a-f]+)` \| ([^|]+) \| [^|]+ \|$", page, re.M)
    named = {(kind, repo, revision, tuple(re.findall(r"`([^`]+)`", files))) for repo, kind, revision, files in rows}
    pinned = set()
    for path in sorted((ROOT / "config").glob("*.yaml")):
        pinned |= {tuple(files) for files in fetch.hub_files(read_study(path))}
    assert named == pinned
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "config").glob("*.yaml")]
    written = {revision for text in texts for revision in re.findall(r"\b[0-9a-f]{40}\b", text)}
    assert written == {revision for _, _, revision, _ in named}
