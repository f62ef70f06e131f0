"""What `decode` and `inspect` say of bytes: always the same."""

import re

from triptych.data.images import decode, inspect
from triptych.errors import TriptychError


def verdicts(data: bytes) -> list[str | None]:
    """What `decode` and `inspect` say: None where they accept."""
    found = []
    for judge in (decode, inspect):
        try:
            judge(data)
            found.append(None)
        except TriptychError as error:
            found.append(str(error))
    return found


def refused(data: bytes) -> str:
    first, second = verdicts(data)
    assert first == second and first, "both refuse, with the same reason"
    assert not re.search("0x[0-9a-f]{6}|BytesIO", first)
    return first
