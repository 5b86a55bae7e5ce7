"""Scripts run as processes that need not import JAX, MLflow and the others: most of their seconds went there.

Not a test. A server, which `run` starts where a test first needs it, imports the libraries and waits; each script runs
in a fork of it. Such a process has its own standard streams, folder, arguments, environment, signals and exit status,
and ends as any other does. What it shares with the others of its server is what came before the fork: the hash seed,
what libraries read while they are imported, and that all of them are imported.

The server starts no threads of JAX, as these do not survive a fork. It imports none of the project's modules, as the
scripts may be a copy in another folder, which a test has edited.
"""
import atexit
import functools
import gc
import importlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

LIBRARIES = ("numpy", "pyarrow.compute", "pyarrow.csv", "pyarrow.parquet", "scipy.optimize", "scipy.stats",
             "sklearn.metrics", "jax.numpy", "flax.linen", "optax", "orbax.checkpoint", "matplotlib.figure",
             "matplotlib.backends.backend_agg", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "filelock", "tqdm")
FEW_COLLECTIONS = 200_000, 50, 1000  # of garbage, of which JAX makes little: a tenth of the time of most tests
one_at_a_time = threading.Lock()


# --- in the process of the tests --------------------------------------------------------------------------------------

@functools.cache
def server():
    """(process, socket, environment) of the server of this process, which ends with it."""
    here, there = socket.socketpair()
    with there:
        # Pipes, as those of a script: Python asks its standard streams only once whether they can seek.
        process = subprocess.Popen([sys.executable, __file__, str(there.fileno())], pass_fds=[there.fileno()],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    atexit.register(process.wait)
    atexit.register(here.close)  # called first; it ends the server
    return process, here, dict(os.environ)


def serves(env):
    """Whether a script may run in a fork with this environment: it differs from the server's in nothing that a library
    may read while it is imported. MLflow reads its variables where it needs them, pytest's are for nobody, and those of
    scikit-learn are its own."""
    if sys.platform != "linux":  # elsewhere a fork is not safe, or there is none
        return False
    differing = {name for name, _ in env.items() ^ server()[2].items()}
    return all(name.startswith(("MLFLOW_", "PYTEST_", "KMP_")) for name in differing)


def run(script, *args, cwd, stdin, env):
    """As subprocess.run([sys.executable, script, *args], capture_output=True, text=True, ...)."""
    request = {"argv": [str(script), *map(str, args)], "cwd": str(cwd), "env": env}
    (its_stdin, stdin_end), (stdout_end, its_stdout), (stderr_end, its_stderr) = [os.pipe() for _ in range(3)]
    its_ends = its_stdin, its_stdout, its_stderr
    with one_at_a_time, ThreadPoolExecutor(3) as pool:
        process, connection, _ = server()
        socket.send_fds(connection, [b"!"], its_ends)
        connection.sendall(json.dumps(request).encode() + b"\n")
        for end in its_ends:
            os.close(end)
        pool.submit(write, stdin_end, stdin)
        output = [pool.submit(read, end) for end in (stdout_end, stderr_end)]
        status = connection.recv(100)
    assert status, process.communicate()[1].decode()
    return subprocess.CompletedProcess(request["argv"], int(status), *(text.result() for text in output))


def write(pipe, text):
    with suppress(BrokenPipeError), open(pipe, "w") as file:  # a script need not read all
        file.write(text)


def read(pipe):
    with open(pipe) as file:
        return file.read()


# --- in the server ----------------------------------------------------------------------------------------------------

def serve(connection):
    """Fork for every request. Returns what is asked of the fork, in that process; the server itself does not return."""
    for name in LIBRARIES:
        importlib.import_module(name)
    warm_up()
    gc.freeze()  # or every fork would go through all that was imported when it ends, and copy the memory it lies in
    gc.set_threshold(*FEW_COLLECTIONS)
    assert not any(thread.name != "MainThread" for thread in threading.enumerate())
    while True:
        begin, streams, *_ = socket.recv_fds(connection, 1, 3)
        if not begin:
            os._exit(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about the threads of OpenBLAS, which can be forked
            process = os.fork()
        if not process:
            return json.loads(connection.makefile().readline()), streams
        for stream in streams:
            os.close(stream)
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def warm_up():
    """What libraries make when they are first used, such as tables of fonts, is made once for all forks."""
    from matplotlib.figure import Figure
    from sqlalchemy.orm import configure_mappers
    figure = Figure(layout="constrained")
    figure.subplots().set_title("x")
    figure.savefig(io.BytesIO(), format="png")
    configure_mappers()


def become(request, streams):
    """Make this process one that runs a script as it was asked."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    for name in os.environ.keys() - request["env"].keys():
        del os.environ[name]
    os.environ |= request["env"]
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        listening.set_inheritable(False)
        become(*serve(listening))
    runpy.run_path(sys.argv[0], run_name="__main__")
