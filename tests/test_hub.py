"""The hub of the tests answers the real client as the hub does."""

import pytest
from hub import ENDPOINT, LFS_BYTES, REVISION, STORE, Fault, Hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RevisionNotFoundError

SMALL, LARGE = b'{"a": 1}', bytes(range(256)) * (LFS_BYTES // 128)
MODEL = {"owner/model": {"config.json": SMALL, "sub folder/model.safetensors": LARGE}}


def get(tmp_path, name="config.json", repo="owner/model", **changes):
    path = hf_hub_download(repo, name, **{"revision": REVISION, "cache_dir": tmp_path, **changes})
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def test_small_files_come_from_the_hub_and_large_ones_from_the_other_server_without_the_token(tmp_path):
    with Hub(MODEL, tokens=["hf_secret"]) as hub:
        assert get(tmp_path, token="hf_secret") == SMALL
        assert get(tmp_path, "sub folder/model.safetensors", token="hf_secret") == LARGE
    tokens = {request.token for request in hub.requests if "/store/" in request.line}
    assert tokens == {None} and {r.token for r in hub.requests if "/store/" not in r.line} == {"hf_secret"}
    assert hub.asked("GET /store/") == 1 and hub.sent >= len(SMALL) + len(LARGE)


def test_a_whole_repository_of_many_pages(tmp_path):
    files = {f"part{number}.json": b"%d" % number for number in range(7)}
    with Hub({"datasets/owner/data": files}, page=3) as hub:
        folder = snapshot_download("owner/data", repo_type="dataset", revision=REVISION, local_dir=tmp_path / "data")
        about = HfApi().dataset_info("owner/data", revision="main")
    assert {name: (tmp_path / "data" / name).read_bytes() for name in files} == files and folder
    assert hub.asked("/tree/") == 3
    assert about.sha == REVISION and [file.rfilename for file in about.siblings] == sorted(files)


def test_cut_answers_are_resumed_with_a_range(tmp_path):
    large = bytes(DOWNLOAD_CHUNK_SIZE + 2000)  # what the client has not gathered a chunk of, it asks for again
    with Hub({"owner/model": {"model.safetensors": large}}, Fault("GET /store/", cut=len(large) - 1000)) as hub:
        assert get(tmp_path, "model.safetensors") == large
    ranges = [request.range for request in hub.requests if "GET /store/" in request.line]
    assert ranges == [None, f"bytes={DOWNLOAD_CHUNK_SIZE}-"]


def test_what_is_not_there_or_closed_is_the_clients_own_error(tmp_path):
    gated = {"owner/model": {"hf_friend"}}
    with Hub(MODEL, gated=gated, tokens=["hf_stranger"]), pytest.raises(GatedRepoError):
        get(tmp_path)
    with Hub(MODEL, gated=gated, tokens=["hf_stranger"]):
        with pytest.raises(GatedRepoError):
            get(tmp_path, token="hf_stranger")
        assert get(tmp_path, token="hf_friend") == SMALL
        with pytest.raises(RemoteEntryNotFoundError):
            get(tmp_path, "other.json", token="hf_friend")
        with pytest.raises(RevisionNotFoundError):
            get(tmp_path, revision=REVISION[::-1], token="hf_friend")


def test_addresses_differ_and_signatures_expire():
    import httpx2

    assert ENDPOINT != STORE
    with Hub(MODEL) as hub, httpx2.Client() as client:
        url = f"{ENDPOINT}/owner/model/resolve/{REVISION}/sub folder/model.safetensors"
        assert client.get(url).status_code == 302
        signed = client.get(url).headers["Location"]
        part = client.get(signed, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content, part.headers["Content-Range"]) == (
            206,
            LARGE[10:20],
            f"bytes 10-19/{len(LARGE)}",
        )
        assert client.get(signed, headers={"Range": "bytes=-5"}).content == LARGE[-5:]
        assert client.get(signed, headers={"Range": f"bytes={len(LARGE)}-"}).status_code == 416
        hub.expire()
        assert client.get(signed).status_code == 403
        assert client.get(client.get(url).headers["Location"]).content == LARGE
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(ENDPOINT)
