"""Models and data sets as steps fetch them from the loopback hub: their own layouts, the right bytes, then no hub."""

import io
from functools import partial

import hub_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import REVISION, Fault, Hub
from triptych.config.datasets import HubParquetCaptions, LlavaPretrainCaptions, SlakeHubVqa
from triptych.config.models import HubEncoder, HubLanguageModel
from triptych.data.sources import hub_parquet, llava_pretrain, slake_hub
from triptych.data.sources.base import Item
from triptych.errors import TriptychError
from triptych.io.manifest import read_json, sha256_bytes
from triptych.model import encoders
from triptych.model.prepare import prepare_model

pytestmark = pytest.mark.usefixtures("slept")


def encoder(repo):
    return HubEncoder(source="hub", repo=repo, revision=REVISION)


LLAMA = HubLanguageModel(source="hub", repo="some/llama", revision=REVISION, prompt="<s><image>{question}</s>")
ENCODERS = [kind for kind in encoders.ENCODERS if kind not in ("clip", "siglip")]
MODELS = {
    "clip": ("vision_encoder", encoder("some/clip"), hub_files.clip),
    "siglip": ("vision_encoder", encoder("some/siglip"), hub_files.siglip),
    "llama": ("language_model", LLAMA, hub_files.tiny_llama),
    **{kind: ("vision_encoder", encoder(f"some/{kind}"), partial(hub_files.encoder, kind)) for kind in ENCODERS},
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_fetched_and_inspected(tmp_path, name):
    role, settings, make = MODELS[name]
    files = make()
    with Hub({settings.repo: files}, Fault("GET /store/", cut=1000)):
        prepare_model(role, settings, tmp_path / "cache", tmp_path / "first")
    prepare_model(role, settings, tmp_path / "cache", tmp_path / "second")  # no hub
    first, second = (read_json(tmp_path / folder / "manifest.json") for folder in ("first", "second"))
    assert first == second
    kept = {file: data for file, data in files.items() if file not in hub_files.OTHERS}
    assert first["files"] == {file: sha256_bytes(data) for file, data in kept.items()}
    assert {"config.json", "model.safetensors"} <= set(kept)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_wrong_with_a_model_of_the_hub_is_told_with_its_name(tmp_path, name):
    role, settings, make = MODELS[name]
    files = make() | {"config.json": b'{"model_type": "unheard_of"}'}
    with Hub({settings.repo: files}), pytest.raises(TriptychError, match=f"^{settings.repo}/config.json: ") as error:
        prepare_model(role, settings, tmp_path / "cache", tmp_path / "model")
    assert "unheard_of" in str(error.value) and "\n" not in str(error.value)


def test_the_models_step_never_changes_the_cache(tmp_path):
    """Files of the cache and of results are the same ones: what a step would write into one, all studies would have."""
    role, settings, make = MODELS["llama"]
    with Hub({settings.repo: make() | {"manifest.json": b'{"of": "the repository"}'}}):
        prepare_model(role, settings, tmp_path / "cache", tmp_path / "model")
        blobs = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("blobs/*")}
        prepare_model(role, settings, tmp_path / "cache", tmp_path / "model")
    assert blobs == {path: path.read_bytes() for path in (tmp_path / "cache").rglob("blobs/*")}
    assert b'{"of": "the repository"}' in blobs.values()
    assert read_json(tmp_path / "model" / "manifest.json")["settings"]["repo"] == "some/llama"


def test_slake_is_fetched_unpacked_and_read(tmp_path):
    settings = SlakeHubVqa(source="slake-hub", revision=REVISION)
    with Hub({"datasets/BoKelvin/SLAKE": hub_files.slake()}, Fault("GET /store/", cut=3000)) as hub:
        found = list(slake_hub.listing(settings, tmp_path))
        assert not hub.asked("KG.zip") and not hub.asked("/tree/")
    items = [item for item in found if isinstance(item, Item)]
    assert len(items) == 20 and {len(item.questions) for item in items} == {3}  # those in English
    with slake_hub.reader(settings, tmp_path) as read:
        assert read(items[7].place) == hub_files.jpeg(int(items[7].path.split("/")[0].removeprefix("xmlab")))[0]


def test_llava_pretrain_is_fetched_and_read(tmp_path):
    settings = LlavaPretrainCaptions(source="llava-pretrain", revision=REVISION, sizes=[10])
    with Hub({"datasets/liuhaotian/LLaVA-Pretrain": hub_files.llava_pretrain()}, Fault("GET /store/", status=500)):
        found = list(llava_pretrain.listing(settings, tmp_path))
        assert len(found) == 24 and all(isinstance(item, Item) for item in found)
        with llava_pretrain.reader(settings, tmp_path) as read:
            for item in found[:10]:
                number = int(item.id.rsplit("-", 1)[1])
                data, colour, side = hub_files.jpeg(1000 + number)
                assert (read(item.place), item.caption) == (data, f"a {colour} square on the {side}")


def parquet(first: int, rows: int) -> bytes:
    cells = [{"bytes": hub_files.jpeg(number)[0], "path": f"{number}.jpg"} for number in range(first, first + rows)]
    captions = [f"thing {number}" for number in range(first, first + rows)]
    with io.BytesIO() as file:
        pq.write_table(pa.table({"image": cells, "caption": captions}), file)
        return file.getvalue()


def test_parquet_files_of_the_hub_are_fetched_and_read(tmp_path):
    files = {f"data/train-{part}.parquet": parquet(5 * part, 5) for part in range(4)}
    files |= {"data/test-0.parquet": parquet(90, 2), "README.md": b"# data", "load.py": b"raise SystemExit"}
    settings = HubParquetCaptions(
        source="hub-parquet", repo="some/data", revision=REVISION, sizes=[5], files="data/train-*.parquet"
    )
    faults = Fault("GET /store/", cut=500, times=3), Fault("HEAD /datasets", status=429), Fault("/tree/", status=502)
    with Hub({"datasets/some/data": files}, *faults, page=2) as hub:
        found = list(hub_parquet.listing(settings, tmp_path))
        assert hub.asked("/tree/") == 1 + 4 and not hub.asked("test-0") and not hub.asked("load.py")
        asked = len(hub.requests)
        with hub_parquet.reader(settings, tmp_path) as read:
            for item in found:
                assert read(item.place) == hub_files.jpeg(int(item.path.removesuffix(".jpg")))[0]
        assert len(found) == 20 and len(hub.requests) == asked


def test_a_missing_part_of_a_data_set_is_named(tmp_path):
    files = {"data/train-0.parquet": parquet(0, 2), "data/train-1.parquet": parquet(2, 2)}
    gone = Fault("data/train-1.parquet", status=404, headers={"X-Error-Code": "EntryNotFound"})
    settings = HubParquetCaptions(source="hub-parquet", repo="some/data", revision=REVISION, sizes=[5])
    message = r"some/data: cannot get data/train-1\.parquet at 0123.*no such file"
    with Hub({"datasets/some/data": files}, gone), pytest.raises(TriptychError, match=message):
        list(hub_parquet.listing(settings, tmp_path))
