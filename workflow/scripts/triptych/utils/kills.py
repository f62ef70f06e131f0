"""Whether a step was killed for its memory, which leaves no word in its log: said there in its last line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.errors import NO_MEMORY

KILLED = (-9, 137)  # exit status of SIGKILL: Python's, and a shell's


def kills_for_memory(own: Path = Path("/proc/self/cgroup"), top: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Count the processes of this control group that were killed for memory; None where that is not counted."""
    try:
        group = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
        events = (top / group.strip("/") / "memory.events").read_text()
        return int(next(line.split()[1] for line in events.splitlines() if line.startswith("oom_kill ")))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def exit_status(error: BaseException | None) -> int | None:
    """Give the exit status of a command that an error is about, or one behind it."""
    while error is not None and not hasattr(error, "returncode"):
        error = error.__cause__ or error.__context__
    return getattr(error, "returncode", None)


def note_kill(log: Path, resources: Mapping[str, Any], more: int | None) -> None:
    """Write into the log of a killed step what happened, how much memory it had, and what to do.

    Args:
        log: its log; a line is added.
        resources: what it had asked for.
        more: processes killed for memory meanwhile; None where that is not counted.
    """
    memory = resources.get("mem_mb")
    had = f"it had asked for {memory} MB" if isinstance(memory, int) else "it had set no limit"
    if more == 0:
        what, remedy = "killed (SIGKILL), but not for its memory", "run it again; a training goes on where it was saved"
    elif more:
        what, remedy = "out of memory: the system killed the step", NO_MEMORY[1]
    else:
        what, remedy = "killed (SIGKILL), as the system does when memory runs out", NO_MEMORY[1]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"error: {what}; {had}; {remedy}\n")
