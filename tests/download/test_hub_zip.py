"""Members out of a zip archive on the hub: only their bytes are fetched, whatever archive and server are like."""

import io
import json
import random
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace

import pytest
from conftest import image_bytes
from hub import REVISION, Fault, Hub
from triptych.config.datasets import LlavaPretrainCaptions
from triptych.data import check, fetch, prepare
from triptych.data.sources import llava_pretrain
from triptych.download import hub_zip, huggingface, zip_spans
from triptych.download.hub_zip import open_members
from triptych.errors import TriptychError

LIMIT = 100_000
GET = "GET /store/datasets/some/data"


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """Seconds that were to be waited; nothing waits. Small archives are not downloaded whole, unlike elsewhere."""
    asked, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: asked.append(seconds) or sleep(min(seconds, 0.001)))
    monkeypatch.setattr(hub_zip, "SMALL", 0)
    monkeypatch.setattr(hub_zip, "TAIL", 100)
    monkeypatch.setattr(zip_spans, "GAP", 100)
    return asked


def member_names(number):
    return [f"{index // 100:05d}/{index:09d}.jpg" for index in range(number)]


def content(name, largest=4000):
    draw = random.Random(name)
    return draw.randbytes(draw.randint(100, largest))


def archive_of(members, compression=zipfile.ZIP_STORED, comment=b"", **options):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", compression, **options) as archive:
            archive.comment = comment
            for name, data in members.items():
                archive.writestr(name, data)
        return file.getvalue()


NAMES = member_names(300)
MEMBERS = {name: content(name) for name in NAMES}
CHOSEN = random.Random(1).sample(NAMES, 30)
ARCHIVE = archive_of(MEMBERS)


def files(archive):
    return {"datasets/some/data": {"images.zip": archive}}


def opened(tmp_path):
    return open_members("some/data", "images.zip", REVISION, tmp_path / "cache")


def bring(tmp_path, names=CHOSEN, limit=LIMIT):
    with opened(tmp_path) as archive:
        archive.bring(names, limit)


def read(tmp_path, names=CHOSEN):
    with opened(tmp_path) as archive:
        return {name: archive.read(name, LIMIT) for name in names}


def ranges_of(hub, name=""):
    """The ranges that were asked of the server with the files."""
    return [request.range for request in hub.requests if "/store/" in request.line and name in request.line]


def parts(tmp_path):
    return sorted((tmp_path / "cache").rglob("hub-zip/*/*/*.zip"))


def test_only_what_is_needed_is_fetched_and_read_without_the_hub(tmp_path):
    with Hub(files(ARCHIVE)) as hub:
        bring(tmp_path)
    needed = sum(len(MEMBERS[name]) for name in CHOSEN)
    with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as archive:
        directory = len(ARCHIVE) - archive.start_dir
    headers = len(CHOSEN) * (30 + len(NAMES[0]))
    assert needed + directory < hub.sent < needed + headers + directory + 200 + 100 * len(CHOSEN)
    ranges = ranges_of(hub)
    assert len(ranges) <= len(CHOSEN) + 2 and None not in ranges
    # The hub itself, which counts requests, is asked for the address alone.
    assert len(hub.requests) - len(ranges) == hub.asked("HEAD /datasets/some/data/resolve") == 2
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}  # no hub
    with opened(tmp_path) as archive:
        assert list(archive.members) == NAMES


def test_members_that_are_there_are_not_fetched_again(tmp_path):
    with Hub(files(ARCHIVE)):
        bring(tmp_path, CHOSEN[:10])
    bring(tmp_path, CHOSEN[:10])  # no hub
    with Hub(files(ARCHIVE)) as hub:
        bring(tmp_path, CHOSEN)
    assert hub.sent < sum(len(MEMBERS[name]) + 200 for name in CHOSEN[10:])
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}


def test_of_two_data_sets_at_a_time_each_member_is_fetched_once(tmp_path):
    with Hub(files(ARCHIVE)) as hub, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda names: bring(tmp_path, names), (CHOSEN[:20], CHOSEN[10:])))
    assert hub.asked(GET) <= len(CHOSEN) + 4  # both may read the directory
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}


class Stream(io.BytesIO):
    """Cannot be gone back in: the archive is written with data descriptors."""

    def seekable(self):
        return False

    def tell(self):
        raise io.UnsupportedOperation

    def seek(self, *_):
        raise io.UnsupportedOperation


def streamed():
    file = Stream()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in MEMBERS.items():
            archive.writestr(name, data)
    return file.getvalue()


def zip64_members():
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in MEMBERS.items():
                with archive.open(name, "w", force_zip64=True) as member:
                    member.write(data)
        return file.getvalue()


def zip64_directory():
    """As of an archive with more than 65,535 members."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 100)
        return archive_of(MEMBERS)


def shuffled_directory():
    """The members in one order, the directory in another."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in MEMBERS.items():
                archive.writestr(name, data)
            random.Random(2).shuffle(archive.filelist)
        return file.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda: archive_of(MEMBERS, zipfile.ZIP_DEFLATED),
        lambda: archive_of(MEMBERS, zipfile.ZIP_BZIP2),
        lambda: archive_of(MEMBERS, comment=b"PK\x05 no end" * 5000),
        lambda: b"#!/bin/sh\n" * 50 + ARCHIVE,
        zip64_directory,
        zip64_members,
        shuffled_directory,
        streamed,
    ],
    ids=[
        "deflated",
        "bzip2",
        "comment",
        "program in front",
        "zip64 directory",
        "zip64 members",
        "shuffled",
        "streamed",
    ],
)
def test_archives_of_all_kinds(tmp_path, make, monkeypatch):
    monkeypatch.setattr(hub_zip, "MOST", 1)
    if make is not streamed:  # of some, the end alone does not hold the whole end record
        monkeypatch.setattr(hub_zip, "TAIL", 22)
    with Hub(files(make())) as hub:
        bring(tmp_path)
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}
    assert all(ranges_of(hub))


def test_neighbours_are_fetched_with_one_request_up_to_a_size(monkeypatch):
    with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as archive:
        (all_of_it,) = zip_spans.spans(archive, archive.filelist)
        assert (all_of_it.start, all_of_it.stop) == (0, archive.start_dir)
        monkeypatch.setattr(zip_spans, "MAX_SPAN", 20_000)
        found = zip_spans.spans(archive, archive.filelist[::-1])
        assert [member for span in found for member in span.members] == archive.filelist
        assert all(before.stop == after.start for before, after in pairwise(found))
        assert max(span.stop - span.start for span in found) <= 20_000 < len(ARCHIVE) / len(found) * 1.2
        monkeypatch.setattr(zip_spans, "MAX_SPAN", 100)  # a member is never cut
        assert len(zip_spans.spans(archive, archive.filelist)) == len(MEMBERS)
        one, third = (archive.filelist[index] for index in (0, 2))
        gap = third.header_offset - archive.filelist[1].header_offset
        monkeypatch.setattr(zip_spans, "MAX_SPAN", 20_000)
        for allowed, number in ((gap - 1, 2), (gap, 1)):
            monkeypatch.setattr(zip_spans, "GAP", allowed)
            assert len(zip_spans.spans(archive, [third, one])) == number


def test_joining_saves_requests_at_the_price_of_some_bytes(monkeypatch):
    """The numbers that are stated with zip_spans.GAP."""
    draw, place, members = random.Random(0), 0, []
    for number in range(60_000):
        member = zipfile.ZipInfo(f"{number // 1000:05d}/{number:09d}.jpg")
        member.header_offset, member.compress_size = (
            place,
            min(400_000, max(2000, int(draw.lognormvariate(10.55, 0.7)))),
        )
        place += 30 + len(member.filename) + 28 + member.compress_size
        members.append(member)
    archive, chosen = SimpleNamespace(filelist=members, start_dir=place), random.Random(5).sample(members, 11_000)
    needed = sum(member.compress_size for member in chosen)
    assert 48_000 < place / len(members) < 50_000
    for gap, requests, more in ((0, 8963, 0.0), (64, 7222, 0.12), (256, 3396, 1.22)):
        monkeypatch.setattr(zip_spans, "GAP", gap << 10)
        found = zip_spans.spans(archive, chosen)
        assert len(found) == requests
        assert sum(span.stop - span.start for span in found) / needed - 1 == pytest.approx(more, abs=0.005)


def test_cut_answers_go_on_where_they_were_cut(tmp_path, slept):
    cuts = (Fault(GET, cut=30), Fault(GET, after=1, times=2, cut=70), Fault(GET, after=4, cut=50))
    with Hub(files(ARCHIVE), *cuts) as hub:
        bring(tmp_path)
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}
    first, second = ranges_of(hub)[:2]
    start, end = first.removeprefix("bytes=").split("-")
    assert second == f"bytes={int(start) + 30}-{end}"
    assert 0 < sum(slept) < 20


@pytest.mark.parametrize(
    "fault",
    [
        Fault(GET, after=3, status=429, headers={"Retry-After": "7"}),
        Fault(GET, after=3, times=3, status=503),
        Fault(GET, after=3, times=2, status=500),
    ],
)
def test_a_busy_server_is_asked_again(tmp_path, fault, slept):
    with Hub(files(ARCHIVE), fault):
        bring(tmp_path)
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}
    assert sum(slept) >= (7 if fault.headers else 1)


def test_addresses_that_expire_are_renewed(tmp_path, monkeypatch):
    with Hub(files(ARCHIVE)) as hub, opened(tmp_path) as archive:
        archive.bring(CHOSEN[:5], LIMIT)
        hub.expire()
        archive.bring(CHOSEN, LIMIT)
        assert 2 < hub.asked("HEAD /datasets/some/data/resolve") < 2 + 16  # once, however many threads find out
    assert hub.asked("HEAD /datasets/some/data/resolve") == 3
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}


def test_where_a_fresh_address_refuses_ranges_the_hub_redirects_each(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    refused = Fault(GET, status=403), Fault(GET, after=2, status=403)  # when the directory and when members are read
    with Hub(files(ARCHIVE), *refused, tokens=["hf_secret"]) as hub:
        bring(tmp_path, CHOSEN[:1])
    assert hub.asked("GET /datasets/some/data/resolve") == 2 + 1 and hub.asked(GET) == 5
    assert {request.token for request in hub.requests if "/store/" in request.line} == {None}
    assert read(tmp_path, CHOSEN[:1]) == {CHOSEN[0]: MEMBERS[CHOSEN[0]]}


def test_the_token_goes_to_the_hub_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Hub(files(ARCHIVE), tokens=["hf_secret"]) as hub:
        bring(tmp_path)
    tokens = {("/store/" in request.line, request.token) for request in hub.requests}
    assert tokens == {(True, None), (False, "hf_secret")}


BODY = b"x" * 50


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"unranged": True}, r"gives no parts of files \(it answers 200, not 206\); download the whole file with `hf "),
        ({"headers": {"Content-Range": f"bytes 7-90/{len(ARCHIVE)}"}}, r"other bytes than those asked for"),
        ({"headers": {"Content-Range": "items 1-2/3"}}, r"other bytes than those asked for"),
        ({"headers": {"Content-Range": f"bytes 0-9/{len(ARCHIVE) - 1}"}}, r"has changed on its server"),
        ({"headers": {"ETag": '"other"'}}, r"has changed on its server"),
        ({"status": 416}, r"has changed on its server"),
        ({"status": 403, "times": 99}, r"access is denied"),
        ({"status": 503, "times": 99}, r"answers 503 .*, 6 times in a row; run again later"),
        ({"status": 429, "headers": {"Retry-After": "9999"}}, r"asks to wait 2 h 46 min"),
        ({"cut": 10, "times": 999}, r"breaks off again and again"),
    ],
    ids=["200", "range", "no range", "size", "etag", "416", "403", "503", "429", "cut"],
)
def test_other_answers_are_one_error_and_nothing_wrong_is_kept(tmp_path, fault, message, monkeypatch):
    monkeypatch.setattr(hub_zip, "PART", 2000)
    monkeypatch.setattr(hub_zip, "CONNECTIONS", 1)
    start = f"^some/data: cannot get images.zip at {REVISION}: "
    with (
        Hub(files(ARCHIVE), Fault(GET, **{"after": 12, **fault})),
        pytest.raises(TriptychError, match=f"{start}.*{message}"),
    ):
        bring(tmp_path)
    kept = len(parts(tmp_path))
    assert 4 <= kept <= 10 and not list((tmp_path / "cache").rglob("*.zip.*"))
    with Hub(files(ARCHIVE)) as hub:
        bring(tmp_path)
    assert hub.asked(GET) <= len(CHOSEN) - kept
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}


def test_another_file_at_the_same_place_is_refused(tmp_path):
    other = archive_of({**MEMBERS, NAMES[0]: b"other"})
    with Hub(files(ARCHIVE)):
        bring(tmp_path, CHOSEN[:5])
    with Hub(files(other)), pytest.raises(TriptychError, match=r"images\.zip has changed on the hub; delete .*hub-zip"):
        bring(tmp_path)


def spoilt(name, change):
    """The archive with one byte of a member's data, or of its entry in the directory, changed."""
    data = bytearray(ARCHIVE)
    change(data, name.encode())
    return bytes(data)


def flip(data, name):
    data[data.index(name) + len(name) + 10] ^= 1


def encrypt(data, name):
    data[data.rindex(name) - 38] |= 1  # the flags of its entry


def shorten(data, name):
    """As of a bomb: more comes out than the directory says."""
    data[data.rindex(name) - 22 : data.rindex(name) - 18] = (5).to_bytes(4, "little")


def misplace(data, name):
    data[data.rindex(name) - 4 : data.rindex(name)] = (0xFFFFFF00).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "Bad CRC-32"),
        (encrypt, "encrypted"),
        (shorten, "Bad CRC-32"),
        (misplace, "Truncated file header"),
    ],
)
def test_members_that_cannot_be_read_are_rejects_of_one_image(tmp_path, change, message, monkeypatch):
    bad = CHOSEN[3]
    archive = spoilt(bad, change)
    with Hub(files(archive)) as hub:
        bring(tmp_path)
        asked = hub.asked(GET)
        bring(tmp_path)
        assert hub.asked(GET) == asked  # the reason is kept
    assert read(tmp_path, set(CHOSEN) - {bad}) == {name: MEMBERS[name] for name in CHOSEN if name != bad}
    reasons = []
    for cache in ("cache", "whole"):
        with Hub(files(archive)), pytest.raises(TriptychError, match=message) as error:
            if cache == "whole":
                huggingface.download("some/data", "images.zip", REVISION, tmp_path / cache)
            with open_members("some/data", "images.zip", REVISION, tmp_path / cache) as opened_archive:
                opened_archive.read(bad, LIMIT)
        reasons.append(str(error.value).split(";")[0])
    assert reasons[0].startswith(f"{bad}: cannot be read out of images.zip (")
    assert change is misplace or reasons[0] == reasons[1]


def test_damage_on_the_way_is_fetched_again(tmp_path):
    once = Fault(GET, after=5, body=None)
    with Hub(files(ARCHIVE), once) as hub:
        answer, left = hub.answer, [1]

        def damaged(address, token):
            given = answer(address, token)
            if given.file is not None and hub.asked(GET) == 6 and left:
                left.clear()
                given.file = type(given.file)(bytes(len(ARCHIVE)))
                given.headers["ETag"] = answer(address, token).headers["ETag"]
            return given

        hub.answer = damaged
        bring(tmp_path)
    assert not left
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}


def test_large_members_are_not_fetched(tmp_path):
    limit = sorted(len(MEMBERS[name]) for name in CHOSEN)[-3] - 1
    large = [name for name in CHOSEN if len(MEMBERS[name]) > limit]
    with Hub(files(ARCHIVE)) as hub:
        bring(tmp_path, large, limit)
    assert hub.asked(GET) == 2  # the directory
    with pytest.raises(TriptychError, match=f"^{large[0]}: larger than {limit} bytes$"):
        read(tmp_path, large)


def test_a_directory_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_zip, "MAX_DIRECTORY", 1000)
    with Hub(files(ARCHIVE)) as hub, pytest.raises(TriptychError, match="directory is larger than"):
        bring(tmp_path)
    assert hub.sent == 100 and not parts(tmp_path)


@pytest.mark.parametrize("data", [b"PK nothing" * 1000, ARCHIVE[:-7], bytes(5000)])
def test_what_is_no_archive_is_one_error(tmp_path, data):
    with Hub(files(data)), pytest.raises(TriptychError, match=r"^images\.zip: not a readable zip archive .*revision"):
        bring(tmp_path)
    assert not list((tmp_path / "cache").rglob("directory*"))


def test_the_whole_archive_is_used_where_it_is(tmp_path):
    with Hub(files(ARCHIVE)):
        huggingface.download("some/data", "images.zip", REVISION, tmp_path / "cache")
    bring(tmp_path)  # no hub
    assert read(tmp_path, NAMES) == MEMBERS and not parts(tmp_path)


def test_small_archives_and_most_of_one_are_downloaded_whole(tmp_path, monkeypatch):
    with Hub(files(ARCHIVE)):
        bring(tmp_path, NAMES)
    assert huggingface.stored_file("some/data", "images.zip", REVISION, tmp_path / "cache")
    assert read(tmp_path, NAMES) == MEMBERS and not parts(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(hub_zip, "SMALL", len(ARCHIVE))
    with Hub(files(ARCHIVE)) as hub:
        bring(tmp_path)
    assert ranges_of(hub) == [None]
    assert read(tmp_path, NAMES) == MEMBERS


def test_offline_only_what_is_there_is_read(tmp_path, monkeypatch):
    with Hub(files(ARCHIVE)):
        bring(tmp_path, CHOSEN[1:])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with Hub(files(ARCHIVE)) as hub:
        assert read(tmp_path, CHOSEN[1:]) == {name: MEMBERS[name] for name in CHOSEN[1:]}
        with pytest.raises(OSError, match=r"not fetched yet, and some/data: cannot get .*offline mode.*login node"):
            read(tmp_path, CHOSEN)
        with pytest.raises(TriptychError, match=r"offline mode.*login node"):
            bring(tmp_path)
        with pytest.raises(TriptychError, match=r"has no member 'other\.jpg'"):
            read(tmp_path, ["other.jpg"])
        assert not hub.requests


def test_members_that_were_not_fetched_ahead_are_fetched_when_read(tmp_path):
    with Hub(files(ARCHIVE)) as hub:
        bring(tmp_path, CHOSEN[:5])
        asked = hub.asked(GET)
        assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}
        assert hub.asked(GET) == asked + len(CHOSEN) - 5


def test_a_whole_archive_that_was_damaged_later_stops_and_is_fetched_again(tmp_path):
    with Hub(files(ARCHIVE)):
        path = huggingface.download("some/data", "images.zip", REVISION, tmp_path / "cache")
        path.resolve().write_bytes(spoilt(CHOSEN[0], flip))
        assert read(tmp_path, CHOSEN[1:]), "the others are whole"
        with pytest.raises(OSError, match=r"images\.zip differs from its hash on the hub: damaged since it was stored"):
            read(tmp_path)
        huggingface.download("some/data", "images.zip", REVISION, tmp_path / "cache")
        assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}


@pytest.mark.parametrize("damage", ["cut", "flip", "directory"])
def test_damage_in_the_cache_is_found(tmp_path, damage):
    with Hub(files(ARCHIVE)):
        bring(tmp_path)
    (part,) = parts(tmp_path)
    if damage == "directory":
        part = part.with_name("directory")
    data = bytearray(part.read_bytes())
    data[200] ^= 1
    part.write_bytes(data[: -1000 if damage == "cut" else None])
    with Hub(files(ARCHIVE)):
        if damage == "flip":
            with pytest.raises(OSError, match=rf"{part.name}: damaged .*; delete it"):
                read(tmp_path)
            part.unlink()
        elif damage == "directory":
            with pytest.raises(TriptychError, match=r"directory: damaged; delete .*directory\.json and run again"):
                bring(tmp_path, NAMES[:40])
            with pytest.raises(OSError, match=r"not fetched yet, and .*directory: damaged"):
                read(tmp_path, NAMES[:40])
            part.with_name(f"{part.name}.json").unlink()
        bring(tmp_path)
    assert read(tmp_path) == {name: MEMBERS[name] for name in CHOSEN}


# LLaVA-Pretrain


def entry(name):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"a thing called {name}"}]
    return {"id": name, "image": name, "conversations": turns}


@pytest.fixture
def llava(monkeypatch):
    """A function that gives a hub's 60 captioned images, every n-th of which is none; blocks have five images."""
    for module in (check, fetch, prepare):
        monkeypatch.setattr(module, "BLOCK", 5)
    names = member_names(60)
    pairs = json.dumps([entry(name) for name in (*names, "gone.jpg")]).encode()

    def give(spoil):
        images = {name: image_bytes("red", "left", number=number) for number, name in enumerate(names)}
        images |= dict.fromkeys(names[::spoil], b"no image")
        return {f"datasets/{llava_pretrain.REPO}": {llava_pretrain.PAIRS: pairs, "images.zip": archive_of(images)}}

    return give


def prepared(tmp_path, cache, **changes):
    settings = LlavaPretrainCaptions(**{"source": "llava-pretrain", "revision": REVISION, "sizes": [12], **changes})
    out = tmp_path / f"out-{cache}"
    fetch.fetch(settings, tmp_path / cache, out / "source")
    return settings, out


def finish(settings, tmp_path, cache, out):
    written = prepare.write_dataset(settings, out / "source", tmp_path / cache, out / "data")
    return written, {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_prepared_data_have_the_bytes_of_those_from_the_whole_archive(tmp_path, llava):
    with Hub(llava(spoil=20)) as hub:
        settings, out = prepared(tmp_path, "parts")
    ranges = ranges_of(hub, "images.zip")
    assert len(ranges) > 2 and all(ranges)
    found = finish(settings, tmp_path, "parts", out)  # no hub
    with Hub(llava(spoil=20)):
        huggingface.download(llava_pretrain.REPO, "images.zip", REVISION, tmp_path / "whole")
        whole = finish(*(settings, tmp_path, "whole", prepared(tmp_path, "whole")[1]))
    assert found == whole and found[0]["counts"]["images"]
    with zipfile.ZipFile(*sorted((tmp_path / "parts").rglob("hub-zip/*/*/*.zip"))) as part:
        assert len(part.filelist) == 15  # 12 and a tenth more, in blocks of five


def test_further_images_are_fetched_where_too_few_can_be_used(tmp_path, llava):
    with Hub(llava(spoil=3)) as hub:
        settings, out = prepared(tmp_path, "parts", sizes=[15], oversample=0)
        asked = len(ranges_of(hub))
        written, _ = finish(settings, tmp_path, "parts", out)
    assert sum(written["counts"]["images"].values()) == 15
    assert 5 <= len(ranges_of(hub)) - asked <= 20
