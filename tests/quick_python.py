"""A Python whose heavy steps are forks of a process that has loaded their libraries: 0.1 s for a start, not five.

    executable = start()  # use it as Snakemake's Python: its steps find `python` beside it

Every step is a process of its own, with the arguments, variables, folder and files that it was given, and ends as it
would have. Random generators are seeded anew in each. Steps that load little, that are given more threads than one, or
another hub than this process, run in a Python of their own as ever.
"""

import atexit
import importlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path

HEAVY = (
    "triptych.evaluate.occlude",
    "triptych.evaluate.predict",
    "triptych.evaluate.probe",
    "triptych.features.encode",
    "triptych.model.prepare",
    "triptych.train",
)
LIBRARIES = (
    *("pandas", "peft", "pyarrow.parquet", "sklearn.linear_model", "sklearn.neural_network", "torch", "transformers"),
    *("triptych.config.jobs", "triptych.features.store", "triptych.model.checkpoint"),
)
SERVERS: list[subprocess.Popen] = []  # each ends when this process does, and with it the pipe to it
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
place = {place!r}
fits = os.environ.get("OMP_NUM_THREADS") == "1" and os.environ.get("PYTHONPATH") == {scripts!r}
fits = fits and {{k: v for k, v in os.environ.items() if k.startswith("HF_") and k != "HF_TOKEN"}} == {hub!r}
if sys.argv[1:2] != ["-m"] or sys.argv[2] not in {heavy!r} or not fits:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect(place)
told = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(told).to_bytes(8, "big")], [0, 1, 2])
server.sendall(told)
lines = server.makefile("r")
step = int(lines.readline())
for number in {forwarded!r}:
    signal.signal(number, lambda number, frame: os.kill(step, number))
status = int(lines.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@cache
def start() -> str:
    """Start the process that is forked, and build a folder like a virtual environment; gives its Python."""
    real, scripts = Path(sys.executable), str(Path(__file__).parents[1] / "workflow/scripts")
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    programs = folder / "bin"
    programs.mkdir()
    (folder / "lib").symlink_to(real.parent.parent / "lib")
    shutil.copy(real.parent.parent / "pyvenv.cfg", folder)
    for program in real.parent.iterdir():
        if program.name != "python":
            (programs / program.name).symlink_to(program)
    place = str(folder / "socket")
    hub = {name: value for name, value in os.environ.items() if name.startswith("HF_") and name != "HF_TOKEN"}
    told = {"place": place, "scripts": scripts, "hub": hub, "heavy": HEAVY, "real": str(programs / "python3")}
    client = CLIENT.format(python=real.resolve(), forwarded=tuple(map(int, FORWARDED)), **told)
    (programs / "python").write_text(client)
    (programs / "python").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": scripts, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([real, __file__, place], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"listening\n"
    SERVERS.append(server)
    return str(programs / "python3")


def serve(place: str) -> None:
    """Fork for every step that is asked for."""
    for name in LIBRARIES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(64)
        print("listening", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
                os._exit(0)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Run one step, tell its process id and, when it has ended, its status; it ends with whoever asked for it."""
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as told:
        arguments, folder, environment = json.loads(told.read(int.from_bytes(length, "big")))
    step = os.fork()
    if step == 0:
        connection.close()
        os._exit(run(arguments, folder, environment, files))
    for file in files:
        os.close(file)
    connection.sendall(f"{step}\n".encode())
    ended = os.pidfd_open(step)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(step, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(step, 0)[1])
    connection.sendall(f"{status}\n".encode())


def run(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> int:
    """Do what `python -m` does, and give the exit status."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for seeded in ("numpy.random", "torch"):
        sys.modules[seeded].seed()
    random.seed()
    sys.argv, sys.path[0], status = arguments, folder, 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(sys.argv[1])
