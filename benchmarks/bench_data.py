"""How fast and how lean is preparation? Against bare decoding, the `datasets` library and webdataset, side by side.

    make bench-data

All read the same generated photographs with the same number of processes, in turn, for several rounds; medians count.
Memory is the largest resident size of any one process, and of all processes of a run together, sampled.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from photographs import photograph
from triptych.config.datasets import FolderCaptions

PROCESSES = 2
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}  # as in rule check_images
ROOT = Path(__file__).parent.parent
DECODE = """
import simplejpeg, sys
from pathlib import Path
for name in sorted(Path(sys.argv[1]).glob("*.jpg"))[int(sys.argv[2])::int(sys.argv[3])][: int(sys.argv[4])]:
    simplejpeg.decode_jpeg(name.read_bytes())
"""
DATASETS = """
import sys
from pathlib import Path
from datasets import Dataset, Features, Image, Value
folder, number, processes, out = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def rows(names):
    for name in names:
        yield {"image": {"bytes": Path(name).read_bytes(), "path": name}, "caption": f"about {name}"}
def usable(row):
    row["image"].load()
    return True
names = [str(name) for name in sorted(folder.glob("*.jpg"))[:number]]
features = Features({"image": Image(), "caption": Value("string")})
data = Dataset.from_generator(
    rows, features=features, gen_kwargs={"names": names}, num_proc=processes, cache_dir=out + "/hf"
)
data.filter(usable, num_proc=processes).to_parquet(out + "/images.parquet")
"""
WEBDATASET = """
import sys
from pathlib import Path
from webdataset import TarWriter
with TarWriter(sys.argv[5] + f"/shard-{sys.argv[2]}.tar") as writer:
    for name in sorted(Path(sys.argv[1]).glob("*.jpg"))[int(sys.argv[2])::int(sys.argv[3])][: int(sys.argv[4])]:
        writer.write({"__key__": name.stem, "jpg": name.read_bytes(), "txt": f"about {name.name}"})
"""


class Memory:
    """Largest resident size in MB, of one process and of all together, of the children of this one while it runs."""

    def __enter__(self) -> "Memory":
        self.one = self.all = 0.0
        self.running = True
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while self.running:
            sizes = []
            for process in psutil.Process().children(recursive=True):
                try:
                    sizes.append(process.memory_info().rss / 1e6)
                except psutil.Error:
                    continue
            self.one, self.all = max([self.one, *sizes]), max(self.all, sum(sizes))
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()


def together(commands: list[list[str]], variables: dict[str, str] | None = None) -> None:
    """Run commands side by side, with further variables of the shell; any failure stops the benchmark."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow/scripts"), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", **(variables or {})}
    running = [
        subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL) for command in commands
    ]
    statuses = [process.wait() for process in running]
    if any(statuses):
        sys.exit("a step failed; see above")


def prepare(images: Path, number: int, out: Path) -> None:
    """Triptych's three data steps, as the workflow runs them."""
    settings = FolderCaptions(source="caption-folder", folder=str(images), sizes=[number]).model_dump_json()
    common = ["--settings", settings, "--cache", str(out / "cache")]
    together([["-m", "triptych.data.fetch", *common, "--out", str(out / "source")]])
    source = [*common, "--source", str(out / "source")]
    shards = [["--shard", f"{n}-of-{PROCESSES}", "--out", str(out / f"{n}.json")] for n in range(1, PROCESSES + 1)]
    together([["-m", "triptych.data.check", *source, *shard] for shard in shards], MALLOC)
    together([["-m", "triptych.data.prepare", *source, "--out", str(out)]])


def decode(images: Path, number: int, out: Path) -> None:
    """Strict decoding to RGB and nothing else."""
    share = str(number // PROCESSES)
    together([["-c", DECODE, str(images), str(n), str(PROCESSES), share] for n in range(PROCESSES)])


def datasets(images: Path, number: int, out: Path) -> None:
    """The `datasets` library: rows from a generator, filtered by decoding them, written with to_parquet."""
    together([["-c", DATASETS, str(images), str(number), str(PROCESSES), str(out)]])


def webdataset(images: Path, number: int, out: Path) -> None:
    """Tar shards written by webdataset, without any check."""
    share = str(number // PROCESSES)
    together([["-c", WEBDATASET, str(images), str(n), str(PROCESSES), share, str(out)] for n in range(PROCESSES)])


def _generate(job: tuple[str, int, int]) -> None:
    folder, start, stop = job
    for seed in range(start, stop):
        Path(folder, f"{seed:06d}.jpg").write_bytes(photograph(seed))


def generate(folder: Path, number: int) -> None:
    """Write `number` photographs and their captions into `folder`, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"image": f"{n:06d}.jpg", "caption": f"a made-up photograph, number {n}"} for n in range(number)]
    if not (folder / "captions.jsonl").exists():
        with multiprocessing.Pool(PROCESSES) as pool:
            pool.map(_generate, [(str(folder), n, min(n + 500, number)) for n in range(0, number, 500)], chunksize=1)
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))


def main() -> None:
    """Print the table of speeds and sizes, and the ratios."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--number", type=int, default=30_000, help="photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "triptych-bench-data")
    arguments = parser.parse_args()
    images = arguments.work / f"images-{arguments.number}"
    print(f"generating {arguments.number} photographs of 640 x 480 ...", flush=True)
    generate(images, arguments.number)
    third = arguments.number // 3
    runs = {
        "triptych": (prepare, arguments.number),
        "strict decode to RGB": (decode, arguments.number),
        "datasets: decode, to_parquet": (datasets, arguments.number),
        "webdataset: write, no check": (webdataset, arguments.number),
        f"triptych, {third}": (prepare, third),
    }
    seconds, one, every = ({name: [] for name in runs} for _ in range(3))
    for turn in range(arguments.rounds):
        for name, (step, number) in runs.items():
            out = Path(tempfile.mkdtemp(dir=arguments.work))
            with Memory() as memory:
                start = time.monotonic()
                step(images, number, out)
                seconds[name].append(time.monotonic() - start)
            one[name].append(memory.one)
            every[name].append(memory.all)
            shutil.rmtree(out)
            print(f"round {turn + 1}, {name}: {seconds[name][-1]:.1f} s, {memory.one:.0f} MB", flush=True)
    print(f"\n| {PROCESSES} processes | images/s (median) | range | MB, largest process | MB, all |")
    print("|---|---|---|---|---|")
    for name, (_, number) in runs.items():
        rates = sorted(number / value for value in seconds[name])
        middle = statistics.median(rates)
        sizes = f"{statistics.median(one[name]):.0f} | {statistics.median(every[name]):.0f}"
        print(f"| {name} | {middle:.0f} | {rates[0]:.0f} to {rates[-1]:.0f} | {sizes} |")

    def ratio(values: dict[str, list[float]], first: str, second: str) -> float:
        return statistics.median(a / b for a, b in zip(values[first], values[second], strict=True))

    decoding, library, small = list(runs)[1], list(runs)[2], list(runs)[4]
    print(f"\nspeed over bare decoding: {ratio(seconds, decoding, 'triptych'):.2f} (bar: 0.85)")
    print(f"speed over datasets: {ratio(seconds, library, 'triptych'):.2f} (bar: 1.5)")
    print(f"memory over datasets, largest process: {ratio(one, 'triptych', library):.2f} (bar: 0.25)")
    print(f"memory, {arguments.number} over {third} images: {ratio(one, 'triptych', small):.2f} (bar: 1.15)")


if __name__ == "__main__":
    main()
