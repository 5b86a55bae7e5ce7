"""The processes that run_script makes by forks.py are such as those that a user starts."""
import re
import signal

import forks
import pytest
from conftest import environment, run_script, save

STATE = """
import os, signal, sys, threading
print(sys.argv, sys.path, __name__, __file__, sys.modules["__main__"].__dict__ is globals(), os.getcwd(), sys.flags)
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.fileno(), stream.encoding, stream.errors, stream.line_buffering, stream.seekable(), stream.isatty())
print([(number, str(signal.getsignal(number))) for number in sorted(signal.valid_signals())])
print(threading.active_count(), threading.current_thread() is threading.main_thread(), os.getpgid(0), os.umask(0))
print(sorted(os.environ.items()), sorted(os.listdir("/proc/self/fd"))[:4], repr(sys.stdin.read()))
print({"conftest", "data", "forks", "pytest", "titles", "train"} & sys.modules.keys())
"""
ENDS = {  # what a script does: (exit status, standard output, what standard error must match)
    "pass": (0, "", ""),
    "import sys; sys.exit(3)": (3, "", ""),
    "import sys; sys.exit('why')": (1, "", "why\n"),
    "raise ValueError('a defect')": (1, "", r"Traceback (?s:.*)\nValueError: a defect\n"),
    "import os; os._exit(7)": (7, "", ""),
    "import os; os.write(2, b'past Python\\n'); os.kill(os.getpid(), 9)": (-signal.SIGKILL, "", "past Python\n"),
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)": (-signal.SIGTERM, "", ""),
    "import ctypes; ctypes.string_at(0)": (-signal.SIGSEGV, "", ""),
    "import atexit; atexit.register(print, 'at exit')": (0, "at exit\n", ""),
    "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()":
        (0, "late\n", ""),
    "import subprocess; subprocess.run(['sh', '-c', 'echo of a child; echo so >&2'])": (0, "of a child\n", "so\n"),
    "print('x' * 200_000); print(input(), input())": (0, "x" * 200_000 + "\nmesa ñ\n", "")}


def test_a_fork_begins_as_a_process_does(tmp_path):
    folder = tmp_path / "with space"
    save(folder / "probe.py", STATE)
    for env in ({}, {"MLFLOW_TRACKING_URI": "sqlite:///ñ.db"}):
        assert forks.serves(environment(**env))
        fork, process = (run_script("probe", "one flag", "", cwd=tmp_path, stdin="mesa\r\nñ\n", root=folder, env=env,
                                    fresh=fresh) for fresh in (False, True))
        assert fork.stdout == process.stdout and fork.stderr == process.stderr == ""


@pytest.mark.parametrize("code", ENDS)
def test_a_fork_ends_as_a_process_does(tmp_path, code):
    save(tmp_path / "probe.py", code)
    status, output, errors = ENDS[code]
    for fresh in (False, True):
        done = run_script("probe", cwd=tmp_path, stdin="mesa\nñ\n" * 50_000, root=tmp_path, check=False, fresh=fresh)
        assert (done.returncode, done.stdout) == (status, output)
        assert re.fullmatch(errors, done.stderr), done.stderr


def test_forks_share_nothing_that_they_change(tmp_path):
    save(tmp_path / "probe.py", "import os, sys, numpy, jax.numpy as jnp\nnumpy.changed = os.environ['CHANGED'] = 'x'\n"
         "sys.path.append('x'); os.chdir('/'); print(numpy.random.random(), jnp.arange(5).sum())")
    first, second = (run_script("probe", cwd=tmp_path, root=tmp_path).stdout for _ in range(2))
    save(tmp_path / "look.py", "import os, sys, numpy; print(hasattr(numpy, 'changed'), 'CHANGED' in os.environ, "
         "'x' in sys.path, os.getcwd() == sys.path[0])")
    assert run_script("look", cwd=tmp_path, root=tmp_path).stdout == "False False False True\n"
    assert first.endswith(" 10\n") and first == second  # but for NumPy's own generator, which no script may use


@pytest.mark.parametrize("name", ["JAX_PLATFORMS", "XLA_FLAGS", "PYTHONHASHSEED", "HOME", "OMP_NUM_THREADS"])
def test_another_environment_needs_a_process(monkeypatch, name):
    assert not forks.serves(environment(**{name: "1"}))
    monkeypatch.setenv(name, "1")
    assert not forks.serves(environment())
