"""Runs trainings in forks of a process that has loaded everything: a start costs a moment, not five seconds.

Each line on stdin is a training: {"arguments": [...], "log": file}. The answers are its process id at once, and its
exit status when it has ended. With "processes": n it is n processes that train together, and the answers are n numbers.
"""

import json
import os
import socket
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from triptych.config.grid import SHARED
from triptych.config.stages import Lora
from triptych.data.questions import load_questions
from triptych.errors import run_step
from triptych.model import language_model
from triptych.model.vlm import add_lora
from triptych.train import distributed
from triptych.train.__main__ import main


def as_torchrun(rank: int, processes: int, port: int) -> None:
    """Set what `torchrun` sets."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in {**numbers, "MASTER_PORT": port}.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "forks"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(arguments: list[str], log: str) -> int:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["triptych.train", *arguments]
    try:
        run_step(main)
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    inputs = Path(sys.argv[1])  # using them once loads the libraries that a training would load
    load_questions(inputs / "data", SHARED, "train")
    add_lora(language_model.load(inputs / "language_model", torch.float32, "eager"), Lora(), seed=0)
    language_model.load_tokenizer(inputs / "language_model")
    for line in sys.stdin:
        job = json.loads(line)
        count, port, children = job.get("processes", 1), free_port(), []
        for rank in range(count):
            if (process := os.fork()) == 0:
                status = 1
                try:
                    as_torchrun(rank, count, port)
                    distributed.TIMEOUT = timedelta(seconds=job.get("timeout", 60))
                    status = run(job["arguments"], job["log"])
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            children.append(process)
        print(*children, flush=True)
        print(*(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children), flush=True)
