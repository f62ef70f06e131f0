"""A LLaVA of the hub is fetched as other models are, once for both parts, and what is refused names the repository."""

import json

import pytest
from hub import Hub
from llavas import PROMPT, prepare_llava, write_llava
from triptych.config.models import HubLlava, LlavaModels
from triptych.errors import TriptychError
from triptych.io.manifest import read_json
from triptych.model.llava import PROJECTOR, identity
from triptych.model.prepare import prepare_model

REPO, REVISION = "some/llava", "0123456789abcdef0123456789abcdef01234567"
MODELS = LlavaModels(llava=HubLlava(source="hub", repo=REPO, revision=REVISION, prompt=PROMPT))
ROLES = ("vision_encoder", "language_model")


@pytest.fixture
def llava(tmp_path):
    return write_llava(tmp_path / "llava")


def served(llava):
    """The folder as a repository, with a pickle and code that must not be asked for, and a folder."""
    files = {path.name: path.read_bytes() for path in llava.iterdir()}
    return Hub(
        {REPO: {**files, "pytorch_model.bin": b"pickle", "modeling.py": b"code", "extra/notes.json": b"{}"}},
        revisions={REPO: REVISION},
    )


def prepare(folder):
    for role in ROLES:
        prepare_model(role, getattr(MODELS, role), folder / "cache", folder / role)
    return folder


def test_both_parts_are_those_of_the_folder_and_are_fetched_once(llava, tmp_path):
    with served(llava) as hub:
        found = prepare(tmp_path / "hub")
        blobs = {path: path.read_bytes() for path in (tmp_path / "hub" / "cache").rglob("blobs/*")}
        asked = [request.line for request in hub.requests if request.line.startswith("GET")]
    assert sum(line.endswith("/model.safetensors") for line in asked) == 1
    assert not [line for line in asked if line.endswith((".bin", ".py"))]
    expected = prepare_llava(tmp_path / "folder", llava)
    for role in ROLES:
        manifests = [read_json(place / role / "manifest.json") for place in (found, expected)]
        assert manifests[0]["files"] == manifests[1]["files"]
        names = {path.relative_to(found / role).as_posix() for path in (found / role).rglob("*") if path.is_file()}
        assert names == {*manifests[0]["files"], "manifest.json"}, "nothing of the whole is left over"
        named = {key: manifests[0]["settings"][key] for key in ("source", "repo", "revision", "part_of")}
        assert named == {"source": "hub", "repo": REPO, "revision": REVISION, "part_of": "llava"}
    assert identity(manifests[0]) == {
        "repo": REPO,
        "revision": REVISION,
        "projector": manifests[0]["files"][PROJECTOR],
    }
    prepare(tmp_path / "hub")  # from the cache, without the hub
    assert blobs == {path: path.read_bytes() for path in blobs}, "all studies share the cache"


@pytest.mark.parametrize("role", ROLES)
def test_a_refused_model_is_named_by_its_repository_and_leaves_nothing(llava, tmp_path, role):
    facts = json.loads((llava / "config.json").read_text())
    (llava / "config.json").write_text(json.dumps({**facts, "projector_hidden_act": "relu"}))
    with served(llava), pytest.raises(TriptychError) as raised:
        prepare_model(role, getattr(MODELS, role), tmp_path / "cache", tmp_path / role)
    assert str(raised.value).startswith(f"{REPO}/config.json: projector_hidden_act: must be gelu, not 'relu'")
    assert not (tmp_path / role).exists()


def test_a_repository_with_a_pickle_alone_is_refused(llava, tmp_path):
    (llava / "model.safetensors").unlink()
    with served(llava), pytest.raises(TriptychError, match=r"has no safetensors .*pytorch_model\.bin, which is never"):
        prepare_model("vision_encoder", MODELS.vision_encoder, tmp_path / "cache", tmp_path / "vision_encoder")
