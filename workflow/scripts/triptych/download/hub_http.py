"""How the hub's client speaks HTTP here: it waits for a busy hub, but not for ever, and writes no secret into a log.

Left to itself, the client waits without limit for a file list, sleeps as long as a server asks it to, does not ask
again after a 500 in the middle of a download, and logs the signed addresses of files.
"""

import logging
import re
import time

import httpx2
from huggingface_hub import is_offline_mode, set_client_factory
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from triptych.errors import TriptychError
from triptych.utils.terminal import announce, duration

PASSING_STATUS = (408, 429, 500, 502, 503, 504)
# Raised before a whole answer is there; an answer that is cut later, the client resumes. That nobody answers at all is
# left to the client too, which then looks into its cache.
PASSING_ERRORS = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)
WAITS = (1, 2, 4, 8, 16)  # seconds between attempts
LONGEST_WAIT = 310  # seconds: the hub counts requests in windows of five minutes
SILENCE = 60  # seconds without an answer where the client sets no limit


class PatientClient(httpx2.Client):
    """A client that asks again after failures which may pass, as often as `WAITS` has entries."""

    def send(self, request: httpx2.Request, **options) -> httpx2.Response:
        """Send a request of the hub's client, and give the first answer that is not a passing failure.

        Raises:
            TriptychError: there was none.
            OfflineModeIsEnabled: HF_HUB_OFFLINE is set.
        """
        if is_offline_mode():
            raise OfflineModeIsEnabled("offline mode is set (HF_HUB_OFFLINE)")
        if not any(request.extensions.get("timeout", {}).values()):
            request.extensions["timeout"] = httpx2.Timeout(SILENCE).as_dict()
        for wait in (*WAITS, None):
            asked = 0
            try:
                response = super().send(request, **options)
                if response.status_code not in PASSING_STATUS or request.method not in ("GET", "HEAD"):
                    return response
                failure = f"{request.url.host} answers {response.status_code} {response.reason_phrase}"
                asked = _asked_wait(response)
                response.close()
            except PASSING_ERRORS as error:
                failure = f"{request.url.host} breaks off ({without_secrets(str(error)) or type(error).__name__})"
            if asked > LONGEST_WAIT:
                raise TriptychError(
                    f"{failure} and asks to wait {duration(asked)}; run again then (with a token, HF_TOKEN, the hub "
                    "allows more requests)"
                )
            if wait is None:
                raise TriptychError(f"{failure}, {len(WAITS) + 1} times in a row; run again later")
            pause = max(wait, asked)
            announce(f"{failure}; asking again in {duration(pause)}")
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def _asked_wait(response: httpx2.Response) -> int:
    """Seconds that an answer asks the client to wait; 0 where it does not say."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1  # the seconds are rounded
    after = response.headers.get("Retry-After", "").strip()
    return int(after) if re.fullmatch(r"[0-9]{1,9}", after) else 0


def without_secrets(text: str) -> str:
    """Leave out of addresses what opens something: user and password, and the query, which holds signatures."""
    return re.sub(r"(https?://)(?:[^/\s@]*@)?([^\s?]*)(?:\?\S*)?", r"\1\2", text)


def _clean(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


def install() -> None:
    """Let the hub's client use this one, and keep secrets out of its log."""
    set_client_factory(lambda: PatientClient(follow_redirects=True, timeout=None))
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_clean)
