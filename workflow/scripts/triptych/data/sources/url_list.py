"""Captioned images of the web: a table of addresses and captions, whose images are downloaded once.

Which images are taken does not depend on the speed of servers or on the number of connections: downloads run side by
side, but their outcomes are used in the order of the choice. A download is kept under a hash of its address; a refusal
that will not change is noted beside it, so that only what is missing is asked for again.
"""

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from math import inf
from pathlib import Path
from typing import NoReturn

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from triptych.config.datasets import UrlListCaptions
from triptych.config.texts import located
from triptych.data.formats.recognise import describe_unusable
from triptych.data.images import is_image
from triptych.data.sources.base import Item, Read, Reject, Selection, item_id
from triptych.data.sources.table_files import Columns, read_rows
from triptych.download.public_network import InternalAddressError, guard, until
from triptych.errors import TriptychError
from triptych.io.atomic import atomic_path
from triptych.io.manifest import sha256_bytes, write_json

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)

# Not every failure lasts: a server may be busy (5xx, 429) or slow (408, 425).
PASSING_STATUS = (408, 425, 429)
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled before each further one
LONGEST_WAIT = 30.0  # seconds; a server that asks for more is left alone
PATIENCE = 15  # an attempt may take this many times the setting `timeout`, which is about silence only
LOOK_AHEAD = 16  # downloads under way or waiting to be used, for each connection
UNREACHABLE = 100  # servers in a row that cannot be reached: then there is no network
PROGRESS_SECONDS = 10


@dataclass(frozen=True)
class Outcome:
    """What became of an address: the size of the stored image, or the reason why there is none."""

    size: int = 0
    reason: str = ""
    unreachable: bool = False


class _FailedError(Exception):
    """An attempt gave no image.

    Attributes:
        reason: why.
        passing: whether a further attempt may succeed.
        after: seconds that the server asks to wait for.
        unreachable: whether no connection to the server was made.
        noted: whether a later run need not ask again.
    """

    def __init__(
        self, reason: str, passing: bool = False, after: float = 0.0, unreachable: bool = False, noted: bool = True
    ):
        super().__init__(reason)
        self.reason, self.passing, self.after, self.unreachable = reason, passing, after, unreachable
        self.noted = noted and not passing


def listing(settings: UrlListCaptions, cache: Path) -> Iterator[Item | Reject]:
    """Download images in selection order until `settings.wanted` are there or no addresses are left.

    Raises:
        TriptychError: the table is missing, cannot be read or lacks a column, or there seems to be no network.
    """
    selection = Selection(settings.seed)
    table = located(settings.table)
    for position, row, reason in read_rows(table, Columns(settings.url_column, settings.caption_column)):
        url = row[0].strip() if row else ""
        if reason := reason or _address_error(url):
            yield Reject("image", position, reason)
        else:
            caption = row[1]
            selection.add(Item(item_id(url, caption), url, _place(url), caption=caption))
    yield from (found for found in selection if isinstance(found, Reject))
    candidates = (found for found in selection if isinstance(found, Item))
    done, failed, unreachable = 0, 0, 0
    progress, stop = _Progress(settings.wanted), threading.Event()
    with (
        _downloader(settings, cache / "downloads", stop) as get,
        closing(_in_order(candidates, settings, get, stop, lambda: progress.report(done, failed))) as outcomes,
    ):
        for item, outcome in outcomes:
            if not outcome.reason:
                done += 1
                yield Item(item.id, item.path, item.place, caption=item.caption, stamp=str(outcome.size))
            else:
                failed += 1
                yield Reject("image", item.path, outcome.reason)
            unreachable = unreachable + 1 if outcome.unreachable else 0
            if unreachable >= UNREACHABLE:
                raise TriptychError(
                    f"{table}: {unreachable} servers in a row cannot be reached; run the fetch step where there is "
                    "internet (on a cluster: the login node). What is downloaded already is kept"
                )
    progress.report(done, failed, last=True)


@contextmanager
def reader(settings: UrlListCaptions, cache: Path) -> Iterator[Read]:
    """Read downloaded images; nothing is asked of the network."""
    store = cache / "downloads"

    def read(place: str) -> bytes:
        if not re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{64}", place):
            raise TriptychError(f"{place!r}: not the place of a download")
        with (store / place).open("rb") as file:
            data = file.read(settings.max_bytes + 1)
        if len(data) > settings.max_bytes:
            raise TriptychError(f"larger than {settings.max_bytes} bytes")
        return data

    yield read


def _in_order(
    candidates: Iterator[Item],
    settings: UrlListCaptions,
    get: Callable[[str], Outcome],
    stop: threading.Event,
    report: Callable[[], None],
) -> Iterator[tuple[Item, Outcome]]:
    """Each candidate with its outcome, in order, up to the last one that is wanted.

    No address is asked for that might turn out not to be needed: so the requests, too, depend on the table and the
    servers alone.
    """
    ahead = LOOK_AHEAD * settings.connections
    queue: deque[tuple[Item, Future]] = deque()
    asked: dict[str, Future] = {}  # an address may stand in the table with several captions
    missing = settings.wanted
    with ThreadPoolExecutor(settings.connections) as pool:
        try:
            while missing:
                while len(queue) < ahead and (len(queue) < missing or _hopes(queue) < missing):
                    item = next(candidates, None)
                    if item is None:
                        break
                    if item.path not in asked:
                        asked[item.path] = pool.submit(get, item.path)
                    queue.append((item, asked[item.path]))
                if not queue:
                    return
                item, future = queue.popleft()
                while not wait([future], PROGRESS_SECONDS).done:
                    report()
                report()
                missing -= not future.result().reason
                yield item, future.result()
        finally:  # also when the caller stops early
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _hopes(queue: deque[tuple[Item, Future]]) -> int:
    """How many of the queue are or may still become images."""
    return sum(not future.done() or not future.result().reason for _, future in queue)


class _Progress:
    """Lines on how far the downloads are, every few seconds."""

    def __init__(self, wanted: float):
        self.wanted, self.start = wanted, time.monotonic()
        self.reported = self.start

    def report(self, done: int, failed: int, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self.reported >= PROGRESS_SECONDS:
            self.reported = now
            rate = (done + failed) / max(now - self.start, 1e-3)
            wanted = "all" if self.wanted == inf else self.wanted
            print(f"{done} of {wanted} images, {failed} addresses failed, {rate:.1f}/s", flush=True)


@contextmanager
def _downloader(settings: UrlListCaptions, store: Path, stop: threading.Event) -> Iterator[Callable[[str], Outcome]]:
    """Give a function, for any thread, that stores the image of an address where it is not stored yet."""
    client = httpx2.Client(
        # Compressed bodies could unpack to any size; images are compressed already.
        headers={"User-Agent": "Triptych (research; downloads captioned images)", "Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,  # each is checked first
        timeout=httpx2.Timeout(settings.timeout, pool=None),
        limits=httpx2.Limits(max_connections=settings.connections, max_keepalive_connections=settings.connections),
    )

    guard(client, settings.internal_hosts)
    retrying = _retrying(settings.retries, stop)

    def get(url: str) -> Outcome:
        path = store / _place(url)
        if known := _known(path, settings.max_bytes):
            return known
        try:
            data = retrying(_attempt, client, url, settings, stop)
        except _FailedError as failure:
            if failure.noted:
                _note(path, failure.reason, settings.max_bytes)
            return Outcome(reason=failure.reason, unreachable=failure.unreachable)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        return Outcome(len(data))

    with client:
        yield get


def _retrying(retries: int, stop: threading.Event) -> Retrying:
    """Attempts that follow a failure which may pass, after exponentially longer pauses.

    The last failure is raised with the number of attempts in its reason. `stop` ends a pause, and no attempt follows.
    """
    exponential = wait_exponential(multiplier=FIRST_WAIT)

    def pause(state: RetryCallState) -> float:
        return max(exponential(state), state.outcome.exception().after)

    def give_up(state: RetryCallState) -> NoReturn:
        failure, attempts = state.outcome.exception(), state.attempt_number
        reason = f"{failure.reason} after {attempts} attempt{'s' if attempts > 1 else ''}"
        raise _FailedError(reason, passing=True, unreachable=failure.unreachable) from None

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise _FailedError("stopped", passing=True)

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, _FailedError) and error.passing),
        wait=pause,
        stop=stop_after_attempt(retries + 1) | (lambda state: state.upcoming_sleep > LONGEST_WAIT),
        sleep=sleep,
        retry_error_callback=give_up,
    )


def _attempt(client: httpx2.Client, url: str, settings: UrlListCaptions, stop: threading.Event) -> bytes:
    """The bytes at an address, redirects followed.

    Raises:
        _FailedError: no image came.
    """
    limit = PATIENCE * settings.timeout
    deadline = time.monotonic() + limit
    try:
        with until(deadline):
            return _exchange(client, url, settings, stop)
    except InternalAddressError:
        raise _FailedError("not a public address (see `internal_hosts`)", noted=False) from None
    # The errors' own texts are left out: they may hold parts of the address.
    except httpx2.TimeoutException as error:
        if time.monotonic() > deadline:
            raise _FailedError(f"not complete within {limit:g} s", passing=True) from None
        raise _FailedError("timed out", passing=True, unreachable=isinstance(error, httpx2.ConnectTimeout)) from None
    except httpx2.ConnectError:
        raise _FailedError("cannot connect", passing=True, unreachable=True) from None
    except (httpx2.HTTPError, OSError) as error:
        raise _FailedError(f"broken off ({type(error).__name__})", passing=True) from None
    except (httpx2.InvalidURL, ValueError):
        raise _FailedError("not a valid address") from None


def _exchange(client: httpx2.Client, url: str, settings: UrlListCaptions, stop: threading.Event) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        with client.stream("GET", url) as response:
            if response.status_code in REDIRECTS and "location" in response.headers:
                url = str(response.url.join(response.headers["location"]))
                if error := _address_error(url):
                    raise _FailedError(f"redirected: {error}")
                continue
            _require_ok(response)
            data, length = bytearray(), response.headers.get("content-length", "")
            if length.isdecimal() and int(length) > settings.max_bytes:
                raise _FailedError(f"larger than {settings.max_bytes} bytes")
            for part in response.iter_raw():
                data += part
                if len(data) > settings.max_bytes:
                    raise _FailedError(f"larger than {settings.max_bytes} bytes")
                if stop.is_set():
                    raise _FailedError("stopped", passing=True)
        if not is_image(data):
            raise _FailedError(describe_unusable(bytes(data)))
        return bytes(data)
    raise _FailedError(f"more than {MAX_REDIRECTS} redirects")


def _require_ok(response: httpx2.Response) -> None:
    status = response.status_code
    if status != 200:
        after = response.headers.get("retry-after", "")
        passing = status in PASSING_STATUS or status >= 500
        raise _FailedError(f"HTTP {status}", passing, float(after) if re.fullmatch(r"[0-9]{1,9}", after) else 0.0)


def _address_error(url: str) -> str:
    """Why an address is not used; empty where nothing speaks against it. Never holds the address itself."""
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        return "not a valid address"
    if address.scheme not in ("http", "https") or not address.host:
        return "not an http or https address"
    return "the address holds a user name or password; such addresses are refused" if address.userinfo else ""


def _place(url: str) -> str:
    name = sha256_bytes(url.encode())
    return f"{name[:2]}/{name}"


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _note(path: Path, reason: str, max_bytes: int) -> None:
    """Remember a failure that will be the same next time."""
    write_json(_note_path(path), {"reason": reason, "max_bytes": max_bytes})


def _known(path: Path, max_bytes: int) -> Outcome | None:
    """The outcome of an earlier run; None where the address has to be asked (again)."""
    too_large = f"larger than {max_bytes} bytes"
    if path.is_file():
        size = path.stat().st_size
        return Outcome(reason=too_large) if size > max_bytes else Outcome(size)
    try:
        note = json.loads(_note_path(path).read_text(encoding="utf-8"))
        reason, limit = note["reason"], note["max_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not reason.startswith("larger than "):
        return Outcome(reason=reason)
    return Outcome(reason=too_large) if limit >= max_bytes else None
