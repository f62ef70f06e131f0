"""Saves a training as it goes, so that one that was killed or interrupted resumes where it was.

States are folders `state-<number>` in `last/`, beside the checkpoint that the training will write: tensors, a record
in JSON and, last, a manifest with the hashes of both. A state gets its name only when it is complete and synced. The
newest two are kept, so that a damaged one costs no more than the time between two. A finished training leaves
`last/finished/`.
"""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from triptych.errors import TriptychError
from triptych.io.atomic import atomic_directory, link_or_copy, sync
from triptych.io.manifest import read_json, require_files, sha256_json, write_record
from triptych.model.checkpoint import code_version
from triptych.train.distributed import all_gather, fail_together, rank
from triptych.train.state import MANIFEST, OtherHardwareError, State, load_state, refuse_other_hardware, save_state

FINISHED, JOB = "finished", "job.json"
EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Interrupted(Exception):
    """The training had to stop and is saved; running it again resumes it."""


class Autosaver:
    """Decides when a training is saved and when it stops; all its processes call it after every step.

    A state is saved every `save_minutes`, and when the training must stop: on one of SIGNALS, or shortly before its
    deadline.
    """

    def __init__(
        self,
        folder: Path,
        dependencies: Mapping[str, object],
        save_minutes: float,
        deadline: float | None = None,
        about: Mapping[str, object] | None = None,
    ):
        """Prepare to save one training.

        Args:
            folder: of the training's states, `last/` of the checkpoint.
            dependencies: all that the training's result depends on, by name: a state with others is not used.
            save_minutes: time between two states.
            deadline: when the training must have stopped, on the clock of `time.monotonic()`.
            about: the checkpoint's manifest as far as it is known, for readers of an unfinished training.
        """
        self.about = about or {}
        self.folder = folder
        self.job = {name: sha256_json(value) for name, value in dependencies.items()}
        self.codes = [code_version()]  # all versions of Triptych that took part, this one last
        self._interval = 60 * save_minutes
        self._deadline = deadline
        self._good: Path | None = None  # the state that was saved or loaded last
        self._signal: str | None = None
        self._called = self._saved = time.monotonic()
        self._longest = 0.0  # seconds between two calls

    def handle_signals(self) -> None:
        """Let SIGNALS stop the training after its current step; a second SIGINT stops at once.

        A SIGHUP that is ignored stays so: `nohup` has asked for that.
        """
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def load(self) -> State | None:
        """Load the newest state that can be used; None where there is none."""
        with fail_together():  # and no process goes on, and saves, while another is still reading
            found = load_state(self.folder, self.job)
        if found is None:
            return None
        self._good, state = found
        codes = [code for code in state.record["codes"] if code != self.codes[-1]]
        if codes:
            print(f"note: the saved state was made by Triptych {codes[-1]}, this is {self.codes[-1]}", flush=True)
        self.codes = [*codes, self.codes[-1]]
        return state

    def save(self, state: State) -> None:
        """Write a state now."""
        state = State(state.tensors, {**state.record, "codes": self.codes, "about": self.about})
        with fail_together():
            if rank() == 0:
                self._good = save_state(self.folder, self.job, state, self._good)
        self._saved = time.monotonic()

    def save_if_due(self, state_dict: Callable[[], State], place: str) -> None:
        """Save if it is time to; called where a training may stop: after a step, and between batches of a validation.

        Args:
            state_dict: gives the training's state.
            place: epoch and step of the training, in words.

        Raises:
            Interrupted: the training must stop, and is saved.
        """
        now = time.monotonic()
        self._longest = max(self._longest, now - self._called)
        self._called = now
        reason = self._signal
        # The next step, with a save in it, may take as long as the longest so far, and then this state is to be saved.
        if reason is None and self._deadline is not None and now + 2 * self._longest > self._deadline:
            reason = "the time limit is near"
        wishes = all_gather((reason, now - self._saved >= self._interval))  # all processes do what one of them must
        reason = next((other for other, _ in wishes if other), None)
        if reason is not None or any(due for _, due in wishes):
            self.save(state_dict())
        if reason is not None:
            raise Interrupted(f"stopped ({reason}) and saved at {place}; run it again to go on")

    def keep_finished(self) -> None:
        """Replace all states by the finished checkpoint: links to its files, which take no space of their own.

        Snakemake deletes the outputs of what it believes unfinished: of a training that ended after the Snakemake that
        started it was killed, or of one whose parent was made again, with the same bytes.
        """
        files = [*read_json(self.folder.parent / MANIFEST)["files"], MANIFEST]
        with atomic_directory(self.folder) as temporary:
            (temporary / FINISHED).mkdir()
            for name in files:
                link_or_copy(self.folder.parent / name, temporary / FINISHED / name)
            write_record(temporary / FINISHED / JOB, {"job": dict(self.job), "code": self.codes[-1]})

    def restore_finished(self) -> bool:
        """Restore the checkpoint that `keep_finished` kept, if it is this training's, by this version, and undamaged.

        Returns:
            Whether it was restored.

        Raises:
            OtherHardwareError: a GPU has finished this training, and this process has none.
        """
        kept = self.folder / FINISHED
        try:
            job = read_json(kept / JOB)
            if job != {"job": dict(self.job), "code": self.codes[-1]}:
                refuse_other_hardware(kept, self.job, job["job"])
                made = {**job["job"], "version of Triptych": job["code"]}
                now = {**self.job, "version of Triptych": self.codes[-1]}
                differing = sorted(name for name in {*made, *now} if made.get(name) != now.get(name))
                print(f"last/{FINISHED} is not used: it has different {', '.join(differing)}", flush=True)
                return False
            files = read_json(kept / MANIFEST)["files"]
            require_files(kept, files, "it is not used")
        except OtherHardwareError:
            raise
        except (TriptychError, KeyError) as error:
            if (kept / JOB).exists():
                print(f"last/{FINISHED} is not used: {error}", flush=True)
            return False
        if rank() == 0:
            (self.folder.parent / MANIFEST).unlink(missing_ok=True)
            for name in [*files, MANIFEST]:
                (self.folder.parent / name).unlink(missing_ok=True)
                link_or_copy(kept / name, self.folder.parent / name)
            sync(self.folder.parent)
        return True
