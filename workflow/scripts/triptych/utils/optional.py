"""Packages that single settings need, and that are not installed with Triptych."""

from importlib.util import find_spec


def why_no_8_bits(device: str | None = None) -> str | None:
    """Say what stands against `optimizer: adamw-8bit` here, and what to do; None where nothing does.

    Args:
        device: type of the device that trains; None where it is not known yet.
    """
    return _why_no_bitsandbytes("adamw-8bit", "use adafactor", device)


def why_no_4_bits(device: str | None = None) -> str | None:
    """Say what stands against `quantise: nf4` of a language model here, as `why_no_8_bits` does."""
    return _why_no_bitsandbytes("nf4", "leave quantise out", device)


def _why_no_bitsandbytes(what: str, instead: str, device: str | None) -> str | None:
    if find_spec("bitsandbytes") is None:
        return f"{what} needs bitsandbytes, which is not installed; pip install bitsandbytes, or {instead}"
    if device not in (None, "cuda"):
        return f"{what} needs a GPU; {instead}"
    return None
