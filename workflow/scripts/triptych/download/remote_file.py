"""A large file of a hub data set, of which byte ranges are read instead of the whole file being downloaded."""

import re
import threading
import time
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from triptych.download.hub_http import WAITS, without_secrets
from triptych.download.huggingface import ask, check_revision
from triptych.errors import TriptychError
from triptych.utils.terminal import announce, duration

TIMEOUT = httpx2.Timeout(60, connect=10)  # seconds without a byte, after which a range is asked for again
EXPIRED = (400, 401, 403, 404, 410)  # answers to a signed address that is no longer valid
PROGRESS = 1 << 16  # bytes: attempts that bring as many do not count as failed


class RemoteFile:
    """A file at a pinned commit; any thread may read any of its bytes.

    The hub is asked once, for the address of the server that has the file, and that server is asked for every range:
    the hub counts requests, and such addresses hold for an hour or so. When one has expired, the hub is asked again.

    Attributes:
        size: in bytes.
        etag: the hub's name for the content; it must not change.
    """

    def __init__(self, repo: str, filename: str, revision: str):
        """Ask the hub for size and address.

        Raises:
            TriptychError: the hub or the file cannot be reached.
        """
        check_revision(repo, revision)
        self._about = repo, filename, revision
        self._url = hf_hub_url(repo, filename, repo_type="dataset", revision=revision)
        self._lock = threading.Lock()
        self._etags: dict[str, str] = {}  # as the server of an address gives them: in a form of its own
        self.size, self.etag, self._address = ask(self._located, *self._about)

    def _located(self) -> tuple[int, str, str]:
        found = get_hf_file_metadata(self._url)
        if not found.size or not found.etag:
            raise TriptychError("the server names no size or no ETag of the file; if HF_ENDPOINT is set, check it")
        return found.size, found.etag, found.location

    def read(self, start: int, stop: int) -> bytes:
        """Read the bytes from `start` up to `stop`; what is cut off or refused for the moment is asked for again.

        Raises:
            TriptychError: they cannot be had, or the file is not the same any more.
        """
        return ask(lambda: self._read(start, stop), *self._about)

    def _read(self, start: int, stop: int) -> bytes:
        data = bytearray()
        failures = 0
        while len(data) < stop - start:
            address, before = self._address, len(data)
            try:
                self._extend(data, address, start, stop)
                break
            except HfHubHTTPError as error:
                if error.response.status_code not in EXPIRED or failures == len(WAITS):
                    raise
                self._renew(address)
                why = f"answers {error.response.status_code}, its address may have expired"
            except httpx2.TransportError as error:
                if failures == len(WAITS):
                    raise
                why = f"breaks off ({without_secrets(str(error)) or type(error).__name__})"
            failures = 0 if len(data) - before >= PROGRESS else failures + 1
            wait = WAITS[max(0, failures - 1)]
            announce(f"{urlsplit(address).hostname} {why}; asking again in {duration(wait)}")
            time.sleep(wait)
        return bytes(data)

    def _extend(self, data: bytearray, address: str, start: int, stop: int) -> None:
        """Append what one answer holds of the bytes that are still missing."""
        first = start + len(data)
        headers = build_hf_headers() | {"Range": f"bytes={first}-{stop - 1}", "Accept-Encoding": "identity"}
        if urlsplit(address).netloc != urlsplit(self._url).netloc:
            headers.pop("authorization", None)  # the token is the hub's alone
        with get_session().stream("GET", address, headers=headers, timeout=TIMEOUT) as response:
            if response.is_error and response.status_code != 416:
                response.read()
                hf_raise_for_status(response)
            self._require_range(response, address, first, stop)
            for part in response.iter_raw():
                data += part[: stop - start - len(data)]
        if len(data) < stop - start:
            raise httpx2.RemoteProtocolError("the answer is too short")

    def _require_range(self, response: httpx2.Response, address: str, first: int, stop: int) -> None:
        """Refuse an answer that holds other bytes than asked for, or bytes of another file.

        Raises:
            TriptychError: it does.
        """
        host = response.url.host
        etag = response.headers.get("ETag", "").removeprefix("W/")
        said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        before = self._etags.setdefault(address, etag)
        changed = (etag and before and etag != before) or (said and int(said[3]) != self.size)
        if changed or response.status_code == 416:
            raise TriptychError("the file has changed on its server while it was read; run again")
        if response.status_code == 200 and (first, stop) == (0, self.size):
            return
        if response.status_code != 206:
            raise TriptychError(
                f"{host} gives no parts of files (it answers {response.status_code}, not 206); download the whole file "
                f"with `hf download`, with HF_HOME set: a file that is there is used"
            )
        if said is None or int(said[1]) != first or int(said[2]) >= stop:
            raise TriptychError(
                f"{host} sends other bytes than those asked for ({response.headers.get('Content-Range')!r} for "
                f"{first}-{stop - 1}); run again later"
            )

    def _renew(self, address: str) -> None:
        """Get a new address for one that has expired, unless another thread has done so.

        Raises:
            TriptychError: the hub has another file there now.
        """
        with self._lock:
            if self._address == address:
                size, etag, found = self._located()
                if (size, etag) != (self.size, self.etag):
                    raise TriptychError("the file has changed on the hub while it was read; run again")
                # Where a fresh address refuses ranges, the hub is asked for each: it redirects to one that does not.
                self._address = found if address in self._etags else self._url
