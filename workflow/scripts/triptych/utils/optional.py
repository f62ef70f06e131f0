"""Packages that single settings need, and that are not installed with Triptych."""

from importlib.util import find_spec


def why_no_8_bits(device: str | None = None) -> str | None:
    """Say what stands against `optimizer: adamw-8bit` here, and what to do; None where nothing does.

    Args:
        device: type of the device that trains; None where it is not known yet.
    """
    if find_spec("bitsandbytes") is None:
        return "adamw-8bit needs bitsandbytes, which is not installed; pip install bitsandbytes, or use adafactor"
    if device not in (None, "cuda"):
        return "adamw-8bit needs a GPU; use adafactor"
    return None
