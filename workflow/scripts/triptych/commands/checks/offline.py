"""Checks of what jobs need without the internet: that offline mode holds, that all is fetched, that models load."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

from triptych.commands.checks.finding import Finding, Place, fault, ok, warning
from triptych.config import paths
from triptych.config.texts import cache_folder

PATIENCE = 300  # seconds for loading models from a slow disk
# A request to the hub, which offline mode must refuse: 0 where it does.
REQUEST = """
import sys
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
for request in (lambda: HfApi().model_info("triptych/none"), lambda: hf_hub_download("triptych/none", "config.json")):
    try:
        request()
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        continue
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit("it was answered")
"""
# Loads the models of a study as its steps do. Arguments: JSON of folders by role.
LOAD = """
import json, sys
from pathlib import Path
import torch
from triptych.errors import run_step
from triptych.model import language_model, vision
def load():
    for name, folder in json.loads(sys.argv[1]).items():
        if name.startswith("vision_encoder"):
            vision.load(Path(folder), torch.device("cpu"))
        else:
            language_model.load(Path(folder), torch.bfloat16, "sdpa")
            language_model.load_tokenizer(Path(folder))
run_step(load)
"""


class Listener:
    """A loopback address in the hub's place, which counts who calls and answers nobody."""

    def __enter__(self) -> "Listener":
        self.calls = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        Thread(target=self._listen, daemon=True).start()
        return self

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self.socket.accept()
            except OSError:
                return
            self.calls += 1
            caller.close()

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _offline(code: str, *words: str) -> tuple[str | None, int]:
    """Run a program in offline mode; gives its last line where it fails, and how often it called the hub."""
    with Listener() as hub:
        mode = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "HF_ENDPOINT": hub.address}
        path = {"PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", code, *words]
        try:
            ended = subprocess.run(
                command, env={**os.environ, **mode, **path}, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {PATIENCE} s", hub.calls
        said = (ended.stderr.strip() or ended.stdout.strip() or f"exit status {ended.returncode}").splitlines()
        return (said[-1] if ended.returncode else None), hub.calls


def offline_mode(_: Place) -> Finding:
    """HF_HUB_OFFLINE: a request is refused before anything is sent."""
    failed, calls = _offline(REQUEST)
    if failed or calls:
        why = failed or f"{calls} connections were made"
        return fault(f"HF_HUB_OFFLINE=1 does not hold ({why})", "make clean; make install")
    return ok("a request to the hub is refused before anything is sent")


def fetched(place: Place) -> Finding:
    """Whether models and data are there, and can be read from here."""
    study, cache = place.study, cache_folder(place.study.settings.cache)
    sources = [study.path(paths.SOURCE, dataset=name) for name in study.grid.used_datasets]
    needed = [*sources, *(folder / "manifest.json" for folder in _models(place).values())]
    missing = [path for path in needed if not path.is_file()]
    unread = [path for path in needed if path.is_file() and not os.access(path, os.R_OK)]
    if unread:
        return fault(f"{unread[0]}: cannot be read from here", "let its owner open it: chmod -R g+rX")
    if missing:
        said = f"{len(missing)} of {len(needed)} models and data sets are not fetched ({missing[0]})"
        if place.on_cluster:
            return fault(said, "on a login node: make aire-fetch CONFIG=...; jobs have no internet")
        return warning(said, "none needed with internet access: the study fetches them")
    # Its absence is seen in a job alone: the command makes it before it submits one.
    if (place.partition and not cache.is_dir()) or (
        cache.exists() and not os.access(cache, os.R_OK | os.W_OK | os.X_OK)
    ):
        said = f"{cache}: the cache cannot be used from here"
        return fault(said, "put it where all machines see it: export TRIPTYCH_CACHE=$SCRATCH/triptych/cache")
    return ok(f"{len(needed)} models and data sets in {study.results}; cache {cache.resolve()}")


def _models(place: Place) -> dict[str, Path]:
    """Folders of the study's models, by name."""
    pattern = paths.MODEL.replace("{role}{tag}", "{name}")
    return {name: place.study.path(pattern, name=name).parent for name in place.study.grid.models}


def models_load(place: Place) -> Finding:
    """Whether the study's models load, in offline mode, without a question to the hub."""
    there = {name: str(folder) for name, folder in _models(place).items() if (folder / "manifest.json").is_file()}
    if not there:
        return warning("no models are there yet", "see the line `fetched`")
    failed, calls = _offline(LOAD, json.dumps(there))
    if failed:
        return fault(f"a model does not load: {failed.removeprefix('error: ')}", "delete its folder and fetch again")
    if calls:
        return fault(f"loading {', '.join(there)} asks the hub", "make clean; make install")
    return ok(f"{', '.join(there)} load offline")
