"""The devices that share every batch: all of one process, or of several processes that train together, which
docs/cluster.md shows.

All processes get the same flags and see the same folders. Each looks at all rows once (checksums, counts) and keeps
those that its own devices hold. The first one prints, writes reports and logs to MLflow; all write checkpoints. One
that ends unexpectedly ends the others: at once where a connection breaks, else after HEARTBEAT seconds or a little
more; one that never comes, after CONNECT. They end with the status of cli.TryAgain, or JAX aborts them: for what starts
programs again, as docs/train.kubernetes.yaml has it, that is another thing than bad input.

What a process decides must not rest on its clock, its signals or what it alone sees, or the others wait for ever.

What is computed, and on which arrays, does not belong here.
"""
import functools
import os
import re
import signal
import socket
import sys
import threading
import traceback
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from titles import cli, files
from titles.cli import TryAgain, UserError

HEARTBEAT = 10   # seconds without a sign of life after which a process counts as dead
CONNECT = 300    # seconds within which all processes must have begun; some may have to fetch an image first
SHUTDOWN = 60    # seconds that a process waits, at its own end, for that of the others


# --- processes --------------------------------------------------------------------------------------------------------

def together(main, args):
    """Call main(args) in this process and, at the same time, in those that --coordinator joins with it. Where one of
    them fails or is killed, the others end with an error."""
    try:
        join(args)
        cli.require_device()
        main(args)
        meet()  # the first one has more to do, and would miss the others
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # What XLA reports begins with a code, such as UNKNOWN, and comes as either kind.
        code = re.match(r"([A-Z_]+): ", str(error))
        if jax.process_count() == 1 or not code or code[1] == "RESOURCE_EXHAUSTED":
            raise
        raise TryAgain("another process has ended, or it cannot be reached; start all of them again, a training with "
                       f"--resume ({str(error)[:200]})") from None


def failed(subject, what):
    """The UserError about what may have failed only because another process has ended."""
    if jax.process_count() > 1:
        return TryAgain(f"{subject}: another process has ended, or {what}")
    return UserError(f"{subject}: {what}")


def join(args):
    """Join the processes that --coordinator names, before JAX looks for devices. Raises UserError where they do not
    find each other."""
    single = args.processes is None and args.process is None
    if args.coordinator in (None, "auto"):
        if not single:
            raise UserError("--processes and --process go with --coordinator HOST:PORT")
    elif not (match := re.fullmatch(r"\S+:(\d{1,5})", args.coordinator)) or not 0 < int(match[1]) < 1 << 16:
        raise UserError(f"--coordinator {args.coordinator}: wanted HOST:PORT, or auto")
    elif args.processes is None or args.process is None or args.process >= args.processes:
        raise UserError(f"--coordinator {args.coordinator}: needs --processes N, and --process from 0 to N - 1")
    if args.coordinator is None:
        return

    # A process that fails must not wait at its end for the others, who wait for it.
    cli.leave_at_once = True
    sys.excepthook = leave_with_traceback
    address = None if args.coordinator == "auto" else args.coordinator
    if address and args.process == 0:
        # JAX would crash where the port is taken.
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(match[1])))
            except OSError as error:
                raise UserError(f"--coordinator: port {match[1]} of this machine cannot be used ({error.strerror}); "
                                "choose another") from None

    # In Kubernetes JAX would ask the cluster even for what it has been told, or warn that it cannot.
    asked = "deactivate" if address and "KUBERNETES_SERVICE_HOST" in os.environ else None

    # Where JAX's own patience ends it aborts the program. Until then Ctrl-C would not be heard.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    patience = threading.Timer(CONNECT, give_up, [args.coordinator])
    patience.start()
    try:
        jax.distributed.initialize(address, args.processes, args.process, cluster_detection_method=asked,
                                   initialization_timeout=2 * CONNECT, heartbeat_timeout_seconds=HEARTBEAT,
                                   shutdown_timeout_seconds=SHUTDOWN)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--coordinator {args.coordinator}: JAX cannot begin there ({str(error)[:200]})") from None
    finally:
        patience.cancel()
        signal.signal(signal.SIGINT, cli.interrupt)

    # Gloo says on standard output that it is connected; that is for messages, as our own output may be JSON. It
    # connects processes, and then all devices, when it is first used.
    kept = os.dup(1)
    os.dup2(2, 1)
    meet()
    int(largest(0))
    os.dup2(kept, 1)
    os.close(kept)
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def give_up(coordinator):
    """End the program, from another thread than the one that waits for the other processes."""
    why = "start them together, each with the address of the first one's machine"
    try:
        socket.getaddrinfo(coordinator.rpartition(":")[0].strip("[]") or "localhost", None)
    except OSError as error:
        why = f"this machine does not know that name ({error.strerror})"
    print(f"error: --coordinator {coordinator}: not all processes were there within {CONNECT} s; {why}",
          file=sys.stderr, flush=True)
    os._exit(TryAgain.status)


def leave_with_traceback(*error):
    traceback.print_exception(*error)
    os._exit(1)


def is_first():
    """Whether this is the process that prints and logs; a single one is."""
    return jax.process_index() == 0


def meet():
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices("meet")


def require_same(value):
    """Raise UserError, in all processes, unless this value, which JSON can hold, is the same in all of them."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils
    digest = np.frombuffer(files.fingerprint(value).encode(), np.uint8)
    if (multihost_utils.process_allgather(digest) != digest).any():
        raise UserError("the processes do not have the same flags, scripts, data and runs; start all of them with the "
                        "same, in folders that they share")


def from_first(text):
    """The text that the first process has, in all of them."""
    from jax.experimental import multihost_utils
    padded = np.frombuffer(text.encode().ljust(4096), np.uint8)
    return multihost_utils.broadcast_one_to_all(padded).astype(np.uint8).tobytes().decode().rstrip()


# --- what goes where --------------------------------------------------------------------------------------------------

def mesh():
    """All devices in a row, or the one that JAX was told to use (jax.default_device). Its axis is automatic: the
    compiler finds out what a gather from shared rows needs."""
    chosen = jax.config.jax_default_device
    if isinstance(chosen, str):  # a platform
        chosen = jax.devices(chosen)[0]
    return mesh_of(*([chosen] if chosen else jax.devices()))


@functools.cache
def mesh_of(*row):
    return jax.make_mesh((len(row),), ("data",), (jax.sharding.AxisType.Auto,), devices=row)


def names():
    """The devices, as text."""
    first, *others = mesh().devices
    text = f"{1 + len(others)} devices, {first} to {others[-1]}" if others else str(first)
    return text + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")


def whole():
    """The sharding of what every device has a copy of."""
    return NamedSharding(mesh(), PartitionSpec())


def parted(rows, axis=0):
    """The sharding of an array with so many rows, which are this axis: each device has its part of them, or all where
    they cannot have equal ones."""
    if rows % mesh().size:
        return whole()
    return NamedSharding(mesh(), PartitionSpec(*[None] * axis, "data"))


def put(tree, sharding):
    """The arrays of a tree, which are the same in all processes, on the devices. sharding: one for all, or a tree."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    # device_put would compare the arrays of all processes first.
    def put_one(x, place):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, place)
        return jax.make_array_from_callback(np.shape(x), place, lambda index: np.asarray(x)[index])

    one_for_all = isinstance(sharding, NamedSharding)
    return jax.tree.map(put_one, tree, jax.tree.map(lambda _: sharding, tree) if one_for_all else sharding)


def beside(function):
    """Call `function` beside what follows. Returns its Future. Several devices must begin all programs in one order, so
    there it is called at once."""
    if mesh().size == 1:
        return cli.in_background(function)
    done = Future()
    done.set_result(function())
    return done


def put_rows(array):
    """An array [N, ...] on the devices, each with its part of the rows; only those of this process are read. Zeros at
    the end make the parts equal."""
    count = -(-len(array) // mesh().size) * mesh().size

    def part(index):
        found = np.asarray(array[index[0]])
        missing = len(range(*index[0].indices(count))) - len(found)
        return np.concatenate([found, np.zeros((missing, *found.shape[1:]), found.dtype)]) if missing else found

    return jax.make_array_from_callback((count, *array.shape[1:]), parted(count), part)


def shared(tree):
    """The arrays of a tree, of which each process can read all and not only its own devices' parts."""
    return tree if jax.process_count() == 1 else replicated(same)(tree)


def largest(number):
    """The largest number of all processes, as an array that is computed after what the devices were given before."""
    if jax.process_count() == 1:
        return number
    numbers = jax.make_array_from_callback((mesh().size,), parted(mesh().size), lambda _: np.full(1, number, np.int32))
    return replicated(jnp.max)(numbers)


def same(tree):
    return tree


@functools.cache
def replicated(function):
    """The function, compiled, with results that every device has."""
    return jax.jit(function, out_shardings=whole())
