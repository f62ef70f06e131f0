"""The chaos test: a toy study is killed, starved of disk and damaged at random until it is complete.

    make chaos SEED=1 MINUTES=12

It must end with the bytes of a study that was left in peace, lose nothing, and train nothing again without a cause.
Beforehand, and for comparison, the same study runs undisturbed.
"""

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml
from conftest import ROOT, toy_config, write_captions, write_models, write_slake
from triptych.io.manifest import read_json

DISK = 48 << 20  # bytes of the small disk
KINDS = (
    *("head", "head and jobs", "job", "training", "disk"),  # SIGKILL, or a full disk
    *("SIGTERM to head", "SIGTERM to job", "SIGTERM to training"),
)
STRIKES = 3  # disturbances of one start, unless the first ends it
TRIES = 8  # starts without a disturbance that a study may need to be complete
TRAIN = re.compile(r"Train (\S+) on (\S+), seed (\d+)\nReason: (.*)")
FILES = {  # what is damaged, by kind
    "connector": "results/checkpoints/*/*/*/connector.safetensors",
    "adapter": "results/checkpoints/*/*/*/adapter.safetensors",
    "manifest": "results/checkpoints/*/*/*/manifest.json",
    "metrics": "results/checkpoints/*/*/*/metrics.jsonl",
    "saved state": "results/checkpoints/*/*/*/last/*/*",
    "feature shard": "results/features/shards/*.safetensors",
    "features' manifest": "results/features/*/manifest.json",
    "cached block": "cache/blocks/*/*.parquet",
    "data table": "results/data/*/*.parquet",
    "images": "results/data/*/images/*.parquet",
    "data record": "results/data/*/*.json",
    "source": "results/sources/*/*",
    "model": "results/models/*/*",
    "prediction": "results/predictions/*/*/*.parquet",
    "answers under way": "results/predictions/*/*/*.part.jsonl",
    "table": "results/tables/*",
    "log": "results/logs/train_stage/*/*/*.log",
}
FOLDERS = ("checkpoints/*/*/*", "predictions/*/*", "features/*", "models/*", "sources/*", "logs/*", "tables")
KEPT = ("checkpoints/*/*/*/*", "predictions/*/*/*", "tables/*", "figures/*")  # all of it must be there in the end
SAME = (*KEPT, "data/**/*.parquet", "data/**/*.json", "features/**/*", "models/**/*")  # and these where they are


def chaos_config(world: Path, cache: Path) -> dict:
    """Two schedules with a shared stage on two folds, without what only multiplies predictions."""
    config = toy_config(world) | {"cache": str(cache), "schedules": [["1", "3"], ["3"]]}
    del config["stages"]["2"]
    config["stages"]["3"] |= {"epochs": 8, "batch_size": 2}
    config["runtime"]["save_minutes"] = 0.01
    config["evaluation"] |= {"controls": [], "leak": None, "probe": None}
    return config


class Study:
    """A folder with a configuration, its results, and what Snakemake said in it."""

    def __init__(self, folder: Path, config: dict):
        self.folder, self.results, self.log = folder, folder / "results", folder / "said.log"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.yaml").write_text(yaml.safe_dump(config))
        self.yes: list[str] = []

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start the study, or go on with it, as a user would; what it says is in `said.log`."""
        locked = any((self.folder / ".snakemake" / "locks").glob("*"))
        module = ["-m", "triptych.commands.resume" if locked else "snakemake", *arguments, *self.yes, "--quiet", "host"]
        module += ["--snakefile", str(ROOT / "Snakefile"), "--profile", str(ROOT / "profiles/local"), "--cores", "2"]
        module += ["--directory", str(self.folder), "--configfile", str(self.folder / "study.yaml")]
        return self._python(module)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run it to its end; gives exit status and what it said."""
        status = self.start(*arguments).wait()
        return status, self.said()

    def verify(self, *arguments: str) -> tuple[int, list[str]]:
        """Run `triptych verify`; gives exit status and what it found damaged."""
        command = ["-m", "triptych.commands.verify", "--configfile", str(self.folder / "study.yaml"), *arguments]
        status = self._python(command).wait()
        assert "Traceback" not in self.said(), self.said()
        return status, re.findall(r"^damaged: (.*)", self.said(), re.MULTILINE)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def _python(self, arguments: list[str]) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts"), "OMP_NUM_THREADS": "1"}
        environment.pop("TRIPTYCH_CACHE", None)
        self.log = Path(tempfile.gettempdir()) / f"{self.folder.parent.name}-{self.folder.name}.log"  # not on its disk
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, *arguments], cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def steps(self) -> list[psutil.Process]:
        """Processes of this study's steps, whosever children they are."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                step = any(word.startswith("triptych.") for word in process.cmdline()[:3])
                if step and Path(process.cwd()) == self.folder:
                    found.append(process)
        return found

    def locked_out(self) -> bool:
        return any((self.folder / ".snakemake" / "locks").glob("*"))


class Ledger:
    """What was done to a study, and what it did: counts, and of every training the causes to begin it again."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()
        self.causes: dict[str, list[str]] = defaultdict(list)
        self.faults: list[str] = []
        self.start = time.monotonic()

    def hit(self, what: str, cells: set[str]) -> None:
        """Note a disturbance, and which trainings it gives a cause to begin again."""
        self.counts[f"disturbance: {what.split(' of ')[0]}"] += 1
        for cell in cells:
            self.causes[cell].append(what)
        self.say(f"{what}{' (hits ' + ', '.join(sorted(cells)) + ')' if cells else ''}")

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.start:6.0f} s  {line}", flush=True)

    def account(self, study: Study) -> None:
        """Go through what the last start has said and logged: trainings begun and resumed, and faults without words."""
        said = study.said()
        for prefix, split, seed, reason in TRAIN.findall(said):
            cell = f"{prefix}/{split}/seed{seed}"
            log = study.results / f"logs/train_stage/{cell}.log"
            text = log.read_text(errors="replace") if log.exists() else ""
            if "its checkpoint is restored" in text:
                self.counts["finished trainings restored"] += 1
            elif "resuming at" in text:
                self.counts["trainings resumed"] += 1
            elif re.search(r"^epoch |\"epoch\": |trainable", text, re.MULTILINE):
                self.counts["trainings begun"] += 1
                self.begun[cell] += 1
                if self.begun[cell] > 1 and not self.causes[cell]:
                    self.faults.append(f"{cell} was trained again without a cause; Snakemake: {reason}")
                self.causes[cell].clear()
            self.counts["trainings finished"] += "the checkpoint holds epoch" in text
            self.counts["damaged states passed over"] += text.count(" is not used: ")
        for log in study.results.glob("logs/**/*.log"):
            text = log.read_text(errors="replace")
            if "Traceback (most recent" in text or re.search(r"^error: .*\n+.*\S", text, re.MULTILINE):
                self.faults.append(f"{log}: an error that is not one line:\n{text[-1500:]}")
                log.unlink()
        self.counts["errors that name a file"] += len(set(re.findall(r"^\s*(error: .*)", said, re.MULTILINE)))

    def table(self) -> str:
        width = max(map(len, self.counts))
        return "\n".join(f"{name:{width}}  {number:4}" for name, number in sorted(self.counts.items()) if number)


def descendants(study: Study, cell: str) -> set[str]:
    """A training and those that start from it, of the study's trainings."""
    prefix, split, _ = cell.split("/")
    cells = all_cells(study)
    grown = {other for other in cells if other.startswith(f"{prefix}-") and split in ("shared", other.split("/")[1])}
    return {cell, *grown}


def all_cells(study: Study) -> set[str]:
    return {
        str(path.relative_to(study.results / "checkpoints")) for path in study.results.glob("checkpoints/*/*/seed*")
    }


def hit_by(study: Study, path: Path) -> set[str]:
    """Trainings that a damaged file gives a cause to begin again."""
    parts = path.relative_to(study.folder).parts
    if parts[:2] == ("results", "checkpoints"):
        return descendants(study, "/".join(parts[2:5]))
    return all_cells(study) if parts[1] in ("data", "models", "features", "sources", "blocks") else set()


def damage(study: Study, ledger: Ledger, kind: str | None = None) -> None:
    """Cut short, change or delete a file, half of the time without a trace in its time stamp; or delete a folder."""
    if kind is None and ledger.random.random() < 0.15:
        folders = sorted(path for pattern in FOLDERS for path in study.results.glob(pattern) if path.is_dir())
        if folders:
            folder = ledger.random.choice(folders)
            ledger.hit(f"deleted folder of {folder.relative_to(study.folder)}", hit_by(study, folder))
            shutil.rmtree(folder)
        return
    present = {name: files for name, pattern in FILES.items() if (files := sorted(study.folder.glob(pattern)))}
    present = {name: [path for path in files if path.is_file()] for name, files in present.items()}
    kind = kind or ledger.random.choice(sorted(present))
    if not present.get(kind):
        return
    path = ledger.random.choice(present[kind])
    way = ledger.random.choice(["cut short", "bit flipped", "deleted"])
    stat, data = path.stat(), path.read_bytes()
    cells = hit_by(study, path)
    if way == "deleted" or not data:
        path.unlink()
    else:
        changed = bytearray(data)
        changed[ledger.random.randrange(len(data))] ^= 1 << ledger.random.randrange(8)
        # In place, as a disk does it: other names of the file see it, too.
        with path.open("r+b") as file:
            file.write(changed if way == "bit flipped" else b"")
            file.truncate(len(data) if way == "bit flipped" else ledger.random.randrange(len(data)))
        if ledger.random.random() < 0.5:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    ledger.hit(f"{way}: {kind} of {path.relative_to(study.folder)}", cells)


def running(steps: list[psutil.Process]) -> set[str]:
    """The trainings among processes."""
    found = set()
    for process in steps:
        with contextlib.suppress(psutil.Error, ValueError):
            words = process.cmdline()
            if "triptych.train" in words:
                found.add("/".join(Path(words[words.index("--out") + 1]).parts[-3:]))
    return found


def strike(study: Study, head: subprocess.Popen, small_disk: bool, ledger: Ledger) -> None:
    """Disturb a running study once."""
    what = ledger.random.choice(KINDS)
    steps = study.steps()
    if what.endswith("training"):  # one that has saved itself, if one comes soon
        steps = wait_for_states(study, head)
    if what == "disk":
        seconds = ledger.random.uniform(3, 12)
        ledger.hit(f"full disk of {seconds:.0f} s", running(steps))
        with full_disk(study, head, small_disk):
            time.sleep(seconds)
            # What was trained at any time of it may have lost its states.
            for cell in running(study.steps()):
                ledger.causes[cell].append("full disk")
    elif what.endswith(("job", "training")):
        if steps:
            step = ledger.random.choice(steps)
            cells = running([step])
            name = " ".join(word for word in step.cmdline()[:3] if word.startswith("triptych."))
            ledger.hit(f"{'SIGTERM' if 'TERM' in what else 'SIGKILL'} to {what.split()[-1]} of {name}", cells)
            with contextlib.suppress(psutil.Error):
                step.send_signal(signal.SIGTERM if "TERM" in what else signal.SIGKILL)
    elif what == "SIGTERM to head":
        ledger.hit(what, set())
        head.terminate()
    else:
        ledger.hit(f"SIGKILL to {what}", running(steps))
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(head.pid).children(recursive=True) if what == "head and jobs" else []
            head.kill()
            for process in below:
                with contextlib.suppress(psutil.Error):
                    process.kill()


def wait_for_states(study: Study, head: subprocess.Popen) -> list[psutil.Process]:
    """Running trainings that have saved a state; none where none has in 20 seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end and head.poll() is None:
        found = []
        for step in study.steps():
            if any(list(study.results.glob(f"checkpoints/{cell}/last/state-*")) for cell in running([step])):
                found.append(step)
        if found:
            return found
        time.sleep(0.05)
    return []


@contextlib.contextmanager
def full_disk(study: Study, head: subprocess.Popen, small_disk: bool) -> Iterator[None]:
    """No room on the study's disk; where it has none of its own, no process may write a file beyond 4 kB."""
    filler = study.folder / "filler"
    if small_disk:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 65536):
                pass
    else:
        _limit_files(head, 4096)
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)
        if not small_disk:
            _limit_files(head, resource.RLIM_INFINITY)


def _limit_files(head: subprocess.Popen, size: int) -> None:
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(head.pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A small disk at `folder`; False where this user may not mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "chaos", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def wait_for_steps(study: Study) -> None:
    """Let steps that outlive their Snakemake end, as `triptych resume` demands."""
    end = time.monotonic() + 900
    while study.steps():
        assert time.monotonic() < end, "a step does not end"
        time.sleep(0.2)


def go_on(study: Study, ledger: Ledger, small_disk: bool, seconds: float | None, kill_at: str | None = None) -> int:
    """One start of the study, disturbed every so many `seconds` at most, or its head killed when a step runs.

    Returns:
        Its exit status.
    """
    head = study.start()
    ledger.counts["restarts"] += 1
    for _ in range(0 if seconds is None else STRIKES):
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(ledger.random.uniform(0.1 * seconds, seconds))
        if head.poll() is None:
            strike(study, head, small_disk, ledger)
    while kill_at and head.poll() is None:
        if any(kill_at in step.cmdline() for step in study.steps()):
            ledger.hit("SIGKILL to head", running(study.steps()))
            head.kill()
    status = head.wait()
    left = study.steps()
    if left and study.locked_out():  # resuming now must be refused, whatever of them is under way
        first = study.said()
        status_now, said = study.run()
        refused = "still run in" in said
        if not refused and study.steps():
            ledger.faults.append(
                f"resumed though steps of the killed Snakemake run (status {status_now}):\n{said[-800:]}"
            )
        ledger.counts["resuming refused while steps run"] += refused
        wait_for_steps(study)
        study.log.write_text(first + said)
    ledger.account(study)
    if "training jobs would run again" in study.said():
        ledger.counts["guard: asks before training again"] += 1
        study.yes = ["--config", "yes_retrain=true"]
    elif status == 0:
        study.yes = []
    return status


def complete(study: Study, ledger: Ledger, small_disk: bool) -> None:
    """Run the study without disturbances, removing what is damaged, until it is complete and all of it verified."""
    for _ in range(TRIES):
        _, damaged = study.verify("--delete")
        ledger.counts["damaged files found by verify"] += len(damaged)
        for fault in damaged:
            ledger.say(f"verify: {fault.replace(str(study.folder), '')}")
        status = go_on(study, ledger, small_disk, None)
        if status == 0 and study.verify()[0] == 0:
            return
        ledger.say(f"Snakemake ended with {status}")
    raise AssertionError(f"not complete after {TRIES} starts:\n{study.said()[-6000:]}")


def compare(calm: Study, study: Study) -> list[str]:
    """What differs between a study that was left in peace and one that was not."""

    def files(one: Study, patterns: tuple[str, ...]) -> dict[str, Path]:
        found = (path for pattern in patterns for path in one.results.glob(pattern) if path.is_file())
        return {str(path.relative_to(one.results)): path for path in found}

    left, right = files(calm, SAME), files(study, SAME)
    lost = set(files(calm, KEPT)) ^ set(files(study, KEPT))
    # Settings that name the cache are in no file; whoever ran is in no file.
    differing = [
        name for name in sorted(left.keys() & right.keys()) if left[name].read_bytes() != right[name].read_bytes()
    ]
    for path in study.results.glob("data/*/manifest.json"):
        counts = read_json(path)["counts"]
        if sum(counts["images"].values()) + counts["rejects"].get("image", 0) != counts["seen"]:
            lost.add(f"images of {path.parent.name}")
    return [*(f"{name}: lost or new" for name in sorted(lost)), *(f"{name}: differs" for name in differing)]


def main() -> None:
    """Run the study undisturbed, then disturbed for some minutes, then to its end; print counts, exit 1 on a fault."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=8, help="of disturbances; before and after come calm runs")
    parser.add_argument("--rounds", type=int, default=10_000, help="starts that are disturbed, at most")
    arguments = parser.parse_args()
    ledger = Ledger(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="triptych-chaos-") as name:
        folder = Path(name)
        world = folder / "world"
        write_models(world / "models")
        write_captions(world / "captions")
        write_slake(world / "slake")
        calm = Study(folder / "calm", chaos_config(world, folder / "calm/cache"))
        status, said = calm.run()
        assert status == 0, said
        seconds = time.monotonic() - ledger.start
        ledger.say("the undisturbed study is complete")
        with disk(folder / "storm") as small_disk:
            ledger.say("a full disk: " + ("a small tmpfs" if small_disk else "a limit on the size of files"))
            storm = Study(folder / "storm", chaos_config(world, folder / "storm/cache"))
            end = time.monotonic() + 60 * arguments.minutes
            for _ in range(arguments.rounds):
                if time.monotonic() > end:
                    break
                status = go_on(storm, ledger, small_disk, seconds / 6)
                if status == 0:
                    ledger.counts["complete in between"] += 1
                if ledger.random.random() < 0.6:
                    for _ in range(ledger.random.randint(1, 3)):
                        damage(storm, ledger)
                if status > 0 and ledger.random.random() < 0.7:  # a user who sees an error looks for damage
                    ledger.counts["damaged files found by verify"] += len(storm.verify("--delete")[1])
            complete(storm, ledger, small_disk)
            status, said = storm.run("--dry-run")
            if "Nothing to be done" not in said:
                ledger.faults.append(f"a complete study has something to do:\n{said[-2000:]}")
            ledger.faults += compare(calm, storm)
    print(ledger.table())
    if ledger.faults:
        sys.exit("\n".join([f"{len(ledger.faults)} faults:", *ledger.faults]))
    print("complete, with the bytes of the study that was left in peace")


if __name__ == "__main__":
    main()
