"""Downloads with the hub's real client from the loopback hub: bytes, faults, waiting, error texts, secrets."""

import logging

import pytest
from conftest import KEY
from hub import ENDPOINT, LFS_BYTES, REVISION, Fault, Hub
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE
from triptych.download import hub_http, huggingface
from triptych.download.huggingface import HubFiles
from triptych.errors import TriptychError

SMALL, LARGE = b"[1, 2]", bytes(range(256)) * (LFS_BYTES // 128)
DATA = {"datasets/some/data": {"pairs.json": SMALL, "images.zip": LARGE}}
MODEL = {
    "some/model": {
        "model.safetensors": LARGE,
        "config.json": b"{}",
        "tokenizer.model": b"t",
        "pytorch_model.bin": LARGE,
        "modeling.py": b"raise SystemExit",
    }
}
ALL = HubFiles("dataset", "some/data", REVISION, ("*",))
PATTERNS = ["*.safetensors", "*.json", "tokenizer.model"]
GET = "GET /store/datasets/some/data"

pytestmark = pytest.mark.usefixtures("slept")


def get(tmp_path, name="images.zip", repo="some/data"):
    return huggingface.download(repo, name, REVISION, tmp_path / "cache").read_bytes()


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_data_are_downloaded_once_and_read_without_the_hub(tmp_path, monkeypatch):
    with Hub(DATA) as hub:
        assert (get(tmp_path), get(tmp_path, "pairs.json")) == (LARGE, SMALL)
        asked = len(hub.requests)
        assert (get(tmp_path), len(hub.requests)) == (LARGE, asked)
        assert huggingface.list_files(ALL, tmp_path) == ["images.zip", "pairs.json"]
    assert get(tmp_path) == LARGE  # no hub
    assert files_in(tmp_path / "cache" / "hub")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    assert huggingface.stored_file("some/data", "images.zip", REVISION, tmp_path / "cache") is None


@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        (Fault(GET, status=503), [1]),
        (Fault(GET, status=500, times=3), [1, 2, 4]),
        (Fault(GET, status=429, headers={"Retry-After": "7"}), [7]),
        (Fault(GET, status=429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), [1]),
        (Fault("HEAD /datasets/some/data", status=502, times=2), [1, 2]),
        (Fault("HEAD /datasets/some/data", status=429, headers={"RateLimit": '"resolvers";r=0;t=54'}), [55]),
        (Fault(GET, cut=1500), [1]),
    ],
)
def test_failures_that_pass_are_outlived(tmp_path, slept, capsys, fault, waits):
    with Hub(DATA, fault):
        assert get(tmp_path) == LARGE
    assert slept == waits
    assert capsys.readouterr().out.count(f"127.0.0.1 answers {fault.status}") == (fault.times if fault.status else 0)


def test_a_cut_download_goes_on_where_it_was_cut_also_if_the_server_is_busy_then(tmp_path):
    large = bytes(2 * DOWNLOAD_CHUNK_SIZE + 100)
    cuts = [Fault(GET, cut=DOWNLOAD_CHUNK_SIZE + 5), Fault(GET, status=503), Fault(GET, cut=DOWNLOAD_CHUNK_SIZE + 5)]
    with Hub({"datasets/some/data": {"images.zip": large}}, *cuts) as hub:
        assert get(tmp_path) == large
    ranges = [request.range for request in hub.requests if GET in request.line]
    second = f"bytes={DOWNLOAD_CHUNK_SIZE}-"
    assert ranges == [None, second, second, f"bytes={2 * DOWNLOAD_CHUNK_SIZE}-"]


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        (Fault(GET, status=503, times=99), "127.0.0.1 answers 503 Service Unavailable, 6 times in a row; run again", 6),
        (Fault(GET, status=429, headers={"Retry-After": "7200"}), "asks to wait 2 h; run again then", 1),
        (Fault("/tree/", status=500, times=99), "answers 500 Internal Server Error, 6 times in a row", 6),
        (Fault("HEAD", status=504, times=99), "answers 504 Gateway Timeout, 6 times in a row", 6),
        (Fault(GET, cut=1500, times=99), "peer closed connection", 6),
        (Fault(GET, status=416, times=99), "the hub answers 416", 1),
    ],
    ids=["busy", "long wait", "list", "head", "cut", "range"],
)
def test_failures_that_do_not_pass_are_one_error_soon(tmp_path, slept, fault, message, requests):
    with Hub(DATA, fault) as hub:
        with pytest.raises(TriptychError, match=r"some/data: cannot get .* at 0123") as told:
            huggingface.list_files(ALL, tmp_path) if "tree" in fault.where else get(tmp_path)
        assert hub.asked(fault.where) == requests
    assert message in str(told.value) and "\n" not in str(told.value)
    assert sum(slept) <= sum(hub_http.WAITS)
    assert not [name for name in files_in(tmp_path) if "images.zip" in name or name.endswith(".incomplete")]


def test_a_silent_hub_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_http, "SILENCE", 0.05)
    with (
        Hub(DATA, Fault("/tree/", wait=5, times=99)),
        pytest.raises(TriptychError, match=r"cannot be reached.*timed out"),
    ):
        huggingface.list_files(ALL, tmp_path)


def test_bytes_that_differ_from_their_hash_are_refused(tmp_path):
    for name, data in (("images.zip", LARGE[::-1]), ("pairs.json", b"[1, 3]")):
        with Hub(DATA, Fault("GET /store/", body=data), Fault("GET /api/resolve-cache", body=data)):
            with pytest.raises(TriptychError, match=f"some/data: {name} differs from its hash on the hub.*run again"):
                get(tmp_path, name)
            assert get(tmp_path, name) == DATA["datasets/some/data"][name]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "access is restricted; accept its conditions on PAGE and set HF_TOKEN"),
        ("hf_stranger", "accept its conditions on PAGE with the account of your token"),
        ("hf_wrong", "the hub does not know the token; correct or unset HF_TOKEN"),
        ("hf_friend", ""),
    ],
)
@pytest.mark.parametrize("page", ["datasets/some/data", "some/model"])
def test_restricted_repositories_say_what_to_accept(tmp_path, monkeypatch, caplog, capfd, page, token, message):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)
    caplog.set_level(logging.DEBUG)
    fetch = {
        "datasets/some/data": lambda: get(tmp_path),
        "some/model": lambda: model(tmp_path),
    }[page]
    with Hub(DATA | MODEL, gated={page: {"hf_friend"}}, tokens=["hf_stranger"]):
        if message:
            with pytest.raises(TriptychError) as told:
                fetch()
            assert message.replace("PAGE", f"{ENDPOINT}/{page}") in str(told.value) and "\n" not in str(told.value)
            assert page.removeprefix("datasets/") in str(told.value) and REVISION in str(told.value)
        else:
            fetch()
    assert "hf_" not in (said := capfd.readouterr()).out + said.err + caplog.text.replace("hf_hub", "")


@pytest.mark.parametrize(
    ("repo", "name", "revision", "message"),
    [
        ("some/data", "other.json", REVISION, "cannot get other.json at 0123.*: no such file at this revision"),
        (
            "some/data",
            "pairs.json",
            "f" * 40,
            f"cannot get pairs.json at {'f' * 40}: the repository has no such revision",
        ),
        ("some/other", "pairs.json", REVISION, "some/other: cannot get pairs.json at 0123.*: not found on the hub"),
    ],
)
@pytest.mark.parametrize("token", [None, "hf_stranger"])
def test_what_is_not_there_is_named(tmp_path, monkeypatch, token, repo, name, revision, message):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub(DATA, tokens=["hf_stranger"]), pytest.raises(TriptychError, match=message):
        huggingface.download(repo, name, revision, tmp_path)


def test_a_denied_token_says_why(tmp_path, monkeypatch):
    said = {"X-Error-Message": "Please enable access to public gated repositories"}
    denied = Fault("HEAD", status=403, headers=said, times=9)
    with Hub(DATA, denied), pytest.raises(TriptychError, match=r"access is denied .*public gated.*HF_TOKEN"):
        get(tmp_path)


def test_neither_tokens_nor_signatures_are_logged(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("HF_TOKEN", KEY)
    faults = Fault(GET, cut=9, times=2), Fault(GET, status=500), Fault("HEAD", status=429), Fault(GET, cut=9, times=99)
    with Hub(DATA, *faults, tokens=[KEY]), pytest.raises(TriptychError) as told:
        get(tmp_path)
    said = capfd.readouterr()
    text = said.out + said.err + caplog.text + str(told.value)
    assert "Error while downloading from http://127.0.0.1" in text and "asking again" in text
    assert KEY not in text and "Signature" not in text


def test_without_its_storage_xet_is_one_error_that_names_the_other_way(tmp_path):
    """A firewall may let the hub through, and not the servers of Xet, which the client prefers where the hub has it."""
    route = f"{ENDPOINT}/api/datasets/some/data/xet-read-token/{REVISION}"
    offered = Fault("HEAD", headers={"X-Xet-Hash": "a" * 64, "Link": f'<{route}>; rel="xet-auth"'})
    token = {"X-Xet-Cas-Url": ENDPOINT, "X-Xet-Access-Token": KEY, "X-Xet-Token-Expiration": "4102444800"}
    with Hub(DATA, offered, Fault("xet-read-token", status=200, body=b"{}", headers=token)) as hub:
        with pytest.raises(TriptychError, match=r"cannot get images.zip.*Xet.*404.*HF_HUB_DISABLE_XET=1") as told:
            get(tmp_path)
        assert hub.asked("reconstructions") and hub.asked("/store/") == 0
    assert KEY not in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see https://user:pass@mirror.org/a?token=x; then", "see https://mirror.org/a then"),
        ("http://a/b?X-Amz-Signature=1&c=2 failed", "http://a/b failed"),
        ("why? because of https://a/b.", "why? because of https://a/b."),
    ],
)
def test_addresses_are_shown_without_what_opens_them(text, clean):
    assert hub_http.without_secrets(text) == clean


def test_a_full_disk_is_not_the_hubs_fault(tmp_path):
    def full():
        raise OSError(28, "No space left on device", "blobs/x")

    with pytest.raises(OSError, match="No space left"):
        huggingface.ask(full, "some/data", "x", REVISION)


def test_offline_only_the_cache_is_used(tmp_path, monkeypatch):
    with Hub(DATA):
        get(tmp_path)
        monkeypatch.setattr(hub_http, "is_offline_mode", lambda: True)  # read once when the client is imported
        assert get(tmp_path) == LARGE
        with pytest.raises(TriptychError, match=r"HF_HUB_OFFLINE.*without internet.*login node.*HF_HOME"):
            get(tmp_path, "pairs.json")


def model(tmp_path, name="model", patterns=PATTERNS):
    files = HubFiles("model", "some/model", REVISION, tuple(patterns))
    huggingface.model_folder(files, tmp_path / name, tmp_path / "cache")
    return files_in(tmp_path / name)


def test_a_models_folder_holds_safe_files_alone_and_is_made_again_without_the_hub(tmp_path):
    with Hub(MODEL) as hub:
        assert model(tmp_path) == ["config.json", "model.safetensors", "tokenizer.model"]
        assert hub.asked("bin") == hub.asked("modeling.py") == 0
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == LARGE
    assert not any(path.is_symlink() for path in (tmp_path / "model").iterdir())
    assert model(tmp_path, "again") == model(tmp_path)  # for another study, no hub
    assert {path.name for path in tmp_path.iterdir()} == {"model", "again", "cache"}


def test_files_that_are_done_are_kept_when_another_fails(tmp_path):
    broken = Fault("GET /store/some/model", status=503, times=6)
    with Hub(MODEL, broken) as hub:
        with pytest.raises(TriptychError, match=r"some/model: cannot get \*\.safetensors.*answers 503"):
            model(tmp_path)
        assert not (tmp_path / "model").exists()
        small = hub.asked("GET /api/resolve-cache")
        assert small == 2 and model(tmp_path) and hub.asked("GET /api/resolve-cache") == small


def test_models_without_safetensors_leave_nothing(tmp_path):
    with Hub({"some/model": {"config.json": b"{}", "pytorch_model.bin": LARGE}}):
        with pytest.raises(TriptychError, match="no safetensors"):
            model(tmp_path)
        with pytest.raises(TriptychError, match="no safetensors"):
            model(tmp_path, patterns=["*.txt"])
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("pattern", ["*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.py", "pytorch_model*"])
def test_patterns_that_match_pickles_or_code_are_refused(tmp_path, pattern):
    with Hub(MODEL) as hub, pytest.raises(TriptychError, match="must end in one of"):
        model(tmp_path, patterns=["*.json", pattern])
    assert not hub.requests


def test_other_files_of_the_users_store_stay_there(tmp_path):
    from huggingface_hub import snapshot_download

    with Hub(MODEL):
        snapshot_download("some/model", revision=REVISION, cache_dir=tmp_path / "cache" / "hub")
        assert model(tmp_path) == ["config.json", "model.safetensors", "tokenizer.model"]
