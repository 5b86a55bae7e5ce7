"""The scripts on Windows, as far as another system can show it: what only POSIX has is missing or fails.

The project's own modules import none of POSIX, and an os, select and signal without what Windows lacks; they must open
text files with an encoding. For all code, libraries included: files and folders that are open or mapped are neither
renamed nor removed, a folder takes no other's place and is not opened, and names are such as Windows permits. Locks are
filelock's own, made to remove their file as they do there. What this cannot show: Windows' locks and paths themselves,
its terminals, and what libraries do in native code.
"""
import builtins
import importlib
import json
import os
import re
import runpy
import select
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import ROOT, environment, save

from titles import files

NO_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
NOT_IN_OS = re.compile(
    "(chown|chroot|ctermid|fchdir|fchmod|fchown|fdatasync|fork|forkpty|fpathconf|fstatvfs|getegid|geteuid|getgid|"
    "getgrouplist|getgroups|getloadavg|getpgid|getpgrp|getpriority|getresgid|getresuid|getsid|getuid|getxattr|"
    "initgroups|killpg|lchown|listxattr|lockf|major|makedev|memfd_create|minor|mkfifo|mknod|nice|openpty|pathconf|"
    "pidfd_open|pipe2|posix_.*|pread|preadv|pwrite|pwritev|readv|register_at_fork|removexattr|sched_.*|sendfile|"
    "set(e?[gu]id|groups|ns|pgid|priority|re[gu]id|res[gu]id|sid|xattr)|splice|statvfs|sync|sysconf|tcgetpgrp|"
    "tcsetpgrp|ttyname|uname|unshare|wait|wait3|wait4|waitid|writev|W[A-Z]+|"
    "O_(ASYNC|CLOEXEC|DIRECT|DIRECTORY|DSYNC|NDELAY|NOATIME|NOCTTY|NOFOLLOW|NONBLOCK|PATH|RSYNC|SYNC|TMPFILE))")
IN_SIGNAL = re.compile("SIG(ABRT|BREAK|FPE|ILL|INT|SEGV|TERM|_DFL|_IGN)|(get|raise_|set_wakeup_fd|)signal|Signals|"
                       "Handlers|default_int_handler|strsignal|valid_signals|__.*__")
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]\Z|(?i:con|prn|aux|nul|com\d|lpt\d)(\..*)?\Z')


class Like:
    """A module without some of its names, and with others in place of its own."""

    def __init__(self, module, lacks, **others):
        self.module, self.lacks, self.others = module, lacks, others

    def __getattr__(self, name):
        if name in self.others:
            return self.others[name]
        if self.lacks(name):
            raise AttributeError(f"Windows has no {self.module.__name__}.{name}")
        return getattr(self.module, name)


def not_a_socket(*args):
    raise OSError(10038, "An operation was attempted on something that is not a socket")


def no_kill(*args):
    raise AssertionError("os.kill ends processes on Windows, whatever the signal")


def hide_posix():
    """Let the project's modules import what Windows has."""
    modules = {"os": Like(os, NOT_IN_OS.fullmatch, name="nt", kill=no_kill),
               "select": Like(select, lambda name: name != "select", select=not_a_socket),
               "signal": Like(signal, lambda name: not IN_SIGNAL.fullmatch(name))}
    original = builtins.__import__

    def from_windows(name, globals=None, *rest, **named):
        if Path((globals or {}).get("__file__") or "/").parent not in (ROOT, ROOT / "titles", Path.cwd()):
            return original(name, globals, *rest, **named)
        if name in NO_MODULES:
            raise ModuleNotFoundError(f"Windows has no {name}")
        return modules.get(name) or original(name, globals, *rest, **named)

    builtins.__import__ = from_windows


def in_use(path):
    """The file that is open or mapped, in a folder or by this name, or None."""
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
    mapped = [line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text("utf-8").splitlines()]
    return next((name for name in opened + mapped if name == path or name.startswith(f"{path}/")), None)


def refuse(folder):
    """Refuse what Windows refuses, in this folder."""
    def hook(event, args):
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") or isinstance(args[0], int):
            return
        paths = [os.path.abspath(os.fsdecode(path)) for path in (args[:2] if event == "os.rename" else args[:1])]
        if not f"{paths[-1]}/".startswith(f"{folder}/"):
            return
        for part in paths[-1][len(folder) + 1:].split("/"):
            assert not FORBIDDEN.search(part), f"Windows permits no file of the name {part}"
        if event == "open" and os.path.isdir(paths[0]):
            raise PermissionError(13, "Permission denied", paths[0])
        if event == "os.rename" and os.path.isdir(paths[1]):
            raise PermissionError(13, "Access is denied", paths[1])
        if event in ("os.rename", "os.remove", "os.rmdir"):
            for path in paths:
                if used := in_use(path):
                    raise PermissionError(13, f"The process cannot access the file ({used})", path)

    shutil._use_fd_functions = False  # what it does on Windows
    sys.addaudithook(hook)


def use_locks_of_windows():
    """Let filelock remove the file of a lock behind its release."""
    import filelock

    class WindowsLike(filelock.FileLock):
        def release(self, *args, **named):
            super().release(*args, **named)
            Path(self.lock_file).unlink(missing_ok=True)

    filelock.FileLock = WindowsLike


def main(commands):
    """Run scripts one after the other in this process."""
    own = "|".join([*(path.stem for path in ROOT.glob("*.py")), r"titles\.\w+"])
    warnings.simplefilter("ignore", EncodingWarning)  # of libraries
    warnings.filterwarnings("error", category=EncodingWarning, module=f"({own}|__main__)\\Z")
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None)
                 and Path(module.__file__).parent in (ROOT, ROOT / "titles")]:
        del sys.modules[name]  # imported by the tests
    use_locks_of_windows()
    hide_posix()
    refuse(os.getcwd())
    for sys.argv in commands:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    assert importlib.import_module("titles.cli").WINDOWS


def run(folder, *commands, stdin=""):
    done = subprocess.run([sys.executable, "-X", "warn_default_encoding", __file__, json.dumps(commands)], cwd=folder,
                          input=stdin, capture_output=True, text=True,
                          env=environment(PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu"))
    said = [line for line in done.stderr.splitlines() if "titles that trained" not in line]
    assert (done.returncode, said) == (0, []), done.stderr
    return done


@pytest.mark.slow
def test_all_scripts_run_without_what_windows_lacks(tmp_path):
    save(tmp_path / "new titles.txt", "mesa\nfunda negra\n")
    one = ["train.py", "--name", "one", "--epochs", "2", "--dim", "8"]
    done = run(tmp_path,
               ["synthetic.py", "--rows", "2500", "--categories", "4", "--out", "a.csv"],
               ["prepare.py", "--data", "a.csv"], ["prepare.py", "--data", "a.csv", "--seed", "1"],
               one, ["train.py", "--resume", "one"], ["train.py", "--refit", "one"],
               ["evaluate.py", "--ckpt", "one"], ["evaluate.py", "--ckpt", "one", "one/latest"],
               ["evaluate.py", "--ckpt", "one", "--test", "a.csv"], ["evaluate.py", "--list"],
               ["evaluate.py", "--ckpt", "best", "--predict", "-", "--out", "out.tsv"],
               ["evaluate.py", "--ckpt", "best", "--predict", "new titles.txt", "--out", "out.tsv"],
               ["export.py", "--ckpt", "one", "--out", "exported"],
               ["classify.py", "exported/model.npz", "new titles.txt"], stdin="mesa\n" * 3)
    assert "test it: python evaluate.py --ckpt one-refit\n" in done.stdout  # the usual folders, with any slashes
    assert (tmp_path / "out.tsv").read_bytes().count(b"\n") == 2
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"test-best", "test-best+one-latest", "model.npz"} <= names
    assert not [name for name in names if name.endswith(".lock") or files.TEMPORARY.search(name)]


REFUSED = {  # what must fail there: how
    "import fcntl": "no fcntl", "import os; os.getuid()": "no os.getuid", "import os; os.O_SYNC": "no os.O_SYNC",
    "import signal; signal.SIGKILL": "no signal.SIGKILL", "import os; os.kill(1, 0)": "os.kill ends processes",
    "import select, sys; select.select([sys.stdin], [], [], 0)": "not a socket",
    "import os; os.open('.', 0)": "Permission denied", "import os; os.mkdir('x:y')": "no file of the name x:y",
    "open('Con.txt', 'wb')": "no file of the name Con.txt", "open('x', 'w')": "'encoding' argument not specified",
    "import os; file = open('a', 'wb'); os.replace('a', 'b')": "cannot access the file",
    "import os; file.close(); os.mkdir('c'); os.mkdir('d'); os.replace('c', 'd')": "Access is denied"}


@pytest.mark.slow
def test_what_windows_lacks_is_hidden(tmp_path):
    """So that the test above can fail."""
    save(tmp_path / "probe.py", f"for statement in {[*REFUSED]}:\n"
         "    try:\n        exec(statement)\n        print('passed', statement)\n"
         "    except Exception as error:\n        print(type(error).__name__, error)\n")
    said = run(tmp_path, [str(tmp_path / "probe.py")]).stdout.splitlines()
    for line, why in zip(said, REFUSED.values(), strict=True):
        assert why in line


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
