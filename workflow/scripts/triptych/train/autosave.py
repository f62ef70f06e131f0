"""A training in progress on disk, so that one that was killed or sent away goes on where it was.

States are folders `state-<number>` in `last/`, beside the checkpoint to be: tensors, a record in JSON and, last, a
manifest with the hashes of both. A state appears under its name only when it is complete and synced. The newest two are
kept, so that a damaged one costs no more than the time between two. A training that is over leaves `last/finished/`.
"""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from triptych.errors import TriptychError
from triptych.io.atomic import atomic_directory, fsync_directory, link_or_copy
from triptych.io.manifest import read_json, require_files, sha256_json, write_record
from triptych.model.checkpoint import code_version
from triptych.train.distributed import gather, rank, together
from triptych.train.state import MANIFEST, State, load_state, save_state

FINISHED, JOB = "finished", "job.json"


EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Paused(Exception):
    """The training was told to stop and is saved; running it again goes on."""


class Keeper:
    """Decides when a training is saved and when it stops; it is asked after every step, by all processes at once.

    A state is saved every `save_minutes`, and when the training must stop: on SIGTERM, SIGINT and SIGUSR1, or when its
    time is about to end.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, object],
        save_minutes: float,
        deadline: float | None = None,
        about: Mapping[str, object] | None = None,
    ):
        """Set up for one training.

        Args:
            folder: where its states are, `last/` of the checkpoint.
            facts: all that the training depends on, by name: a state made with others is not taken up.
            save_minutes: time between two states.
            deadline: when the training must have stopped, as told by `time.monotonic()`.
            about: what those who look at a state may want to know; it decides nothing.
        """
        self.about = about or {}
        self.folder = folder
        self.job = {name: sha256_json(value) for name, value in facts.items()}
        self.codes = [code_version()]  # all versions of Triptych that took part, this one last
        self._interval = 60 * save_minutes
        self._deadline = deadline
        self._good: Path | None = None  # the state that was saved or loaded last
        self._signal: str | None = None
        self._asked = self._saved = time.monotonic()
        self._longest = 0.0  # time from one question to the next

    def listen(self) -> None:
        """Let SIGTERM, SIGINT and SIGUSR1 stop the training after its current step; a second SIGINT stops at once."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def load(self) -> State | None:
        """The state to go on from, if there is one."""
        with together():  # and nobody goes on, and saves, while another still reads
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
        with together():
            if rank() == 0:
                self._good = save_state(self.folder, self.job, state, self._good)
        self._saved = time.monotonic()

    def ask(self, capture: Callable[[], State], place: str) -> None:
        """Save if it is time to; called where a training may stop: after a step, and within a validation.

        Args:
            capture: gives the training's state.
            place: where the training is, in words.

        Raises:
            Paused: the training must stop; it is saved.
        """
        now = time.monotonic()
        self._longest = max(self._longest, now - self._asked)
        self._asked = now
        reason = self._signal
        # The next step, with a save in it, may take as long as the longest so far, and then this state is to be saved.
        if reason is None and self._deadline is not None and now + 2 * self._longest > self._deadline:
            reason = "the time limit is near"
        asked = gather((reason, now - self._saved >= self._interval))  # all stop and save where one must
        reason = next((other for other, _ in asked if other), None)
        if reason is not None or any(due for _, due in asked):
            self.save(capture())
        if reason is not None:
            raise Paused(f"stopped ({reason}) and saved at {place}; run it again to go on")

    def finish(self) -> None:
        """Put the finished checkpoint in place of all states: links to its files, which take no room of their own.

        Snakemake deletes the outputs of what it believes unfinished: of a training that ended after the Snakemake that
        began it was killed, or of one whose parent was made again, with the same bytes.
        """
        files = [*read_json(self.folder.parent / MANIFEST)["files"], MANIFEST]
        with atomic_directory(self.folder) as temporary:
            (temporary / FINISHED).mkdir()
            for name in files:
                link_or_copy(self.folder.parent / name, temporary / FINISHED / name)
            write_record(temporary / FINISHED / JOB, {"job": dict(self.job), "code": self.codes[-1]})

    def put_back(self) -> bool:
        """Put back the checkpoint that `finish` kept, if it is this training's, of this version, and whole."""
        kept = self.folder / FINISHED
        try:
            about = read_json(kept / JOB)
            if about != {"job": dict(self.job), "code": self.codes[-1]}:
                return False
            files = read_json(kept / MANIFEST)["files"]
            require_files(kept, files, "it is not used")
        except TriptychError as fault:
            if (kept / JOB).exists():
                print(f"last/{FINISHED} is not used: {fault}", flush=True)
            return False
        if rank() == 0:
            (self.folder.parent / MANIFEST).unlink(missing_ok=True)
            for name in [*files, MANIFEST]:
                (self.folder.parent / name).unlink(missing_ok=True)
                link_or_copy(kept / name, self.folder.parent / name)
            fsync_directory(self.folder.parent)
        return True
