"""What a training costs is said before it begins (titles/costs.py): operations, bytes, the lines of train.py and
prepare.py. No test looks at a clock: how near the seconds are is measured in docs/performance.md."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_one_line_error, run_here, run_script, snapshot

import model
import prepare
import train
from titles import configuration, costs, devices, progress, start


@pytest.fixture
def steady(monkeypatch):
    """A device that takes as long for every number, whatever it is."""
    monkeypatch.setattr(costs, "RATES", rates := costs.Rates())
    monkeypatch.setattr(costs, "timed", lambda equation: (costs.size_of(equation), costs.size_of(equation) * 1e-9))
    rates.number = rates.measured_number = 1e-9
    rates.call = 0.0


@pytest.fixture
def planned(tiny, tmp_path, steady):
    """A function of flags: the Plan of a training on the tiny set, and its Costs."""
    def planned(*flags):
        args = train.parse_args([
            "--data", str(tiny / "data/prepared"), "--runs", str(tmp_path / "runs"), *map(str, flags)])
        plan = configuration.plan(train.TABLE, args, configuration.read_prepared(args))
        return plan, train.expected(plan, 10)
    return planned


# --- operations -------------------------------------------------------------------------------------------------------

def test_operations_of_loops_and_calls_are_counted():
    def function(x, y):
        def body(x, _):
            return jnp.tanh(x @ y), None
        return jax.lax.scan(body, jax.jit(lambda x: x * 2)(x), None, 7)[0]

    found = {}
    for equation, times in costs.operations(jax.make_jaxpr(function)(np.ones((2, 3)), np.ones((3, 3))).jaxpr):
        found[equation.primitive.name] = times, costs.size_of(equation)
    assert found["dot_general"] == (7, 2 * 3 * 3) and found["tanh"] == (7, 6) and found["mul"] == (1, 6)


def test_rows_that_are_added_and_sums_are_sized_by_what_goes_in():
    def sized(function, *arrays):
        return {equation.primitive.name: costs.size_of(equation)
                for equation, _ in costs.operations(jax.make_jaxpr(function)(*arrays).jaxpr)}

    rows = np.zeros((4, 2), int)
    assert sized(lambda table, add: table.at[rows].add(add), np.ones((50, 3)), np.ones((4, 2, 3)))["scatter-add"] == 24
    assert sized(lambda x: x.sum(), np.ones((5, 6)))["reduce_sum"] == 30


@pytest.mark.parametrize("function, shapes", [
    (lambda table, ids: table[ids.astype(int)], ((300_000, 100), (20_000, 2))),
    (lambda table, ids: table[ids.astype(int)], ((7,), (3, 2))),
    (lambda table, ids: table[ids.astype(int), 1:3], ((7, 9), (3,))),
    (lambda table, ids: table.at[ids.astype(int)].add(jnp.ones((*ids.shape, 100))), ((300_000, 100), (20_000, 2))),
    (lambda table, ids: table.at[3].add(ids[0]), ((9,), (2,))),
    (lambda table, ids: table @ ids, ((5, 6, 7), (5, 7, 2)))])
def test_an_operation_runs_by_itself(function, shapes):
    """Also where of the table and the rows a part is taken, which then counts for so much less."""
    wanted = [one for one, _ in costs.operations(jax.make_jaxpr(function)(
        *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)).jaxpr) if one.primitive.name in costs.ALONE]
    size, seconds = costs.timed(wanted[0])
    whole = costs.size_of(wanted[0])
    assert 0 < seconds and (size == whole if whole < 1 << 20 else 1 << 19 < size < whole / 3)


# --- bytes ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [[], ["--model", "cnn", "--dim", 8], ["--maxn", 0, "--minn", 0], ["--shard-table"]])
def test_bytes_are_those_of_the_real_arrays(planned, flags):
    plan, found = planned(*flags)
    state, features, frozen, arrays = start.begin(plan, train.make_optimizer(plan.config))
    shapes = costs.shapes_of_features(plan)
    assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
        name: (x.shape, x.dtype) for name, x in features.items()}
    of_rows = train.training_arrays(plan.config, features, arrays["train"], frozen)
    held = sum(x.nbytes for x in jax.tree.leaves((state, of_rows)))
    words = sum(x.nbytes for x in train.predict.make_predictor(plan.config, state["variables"], features).words)
    assert costs.nbytes(state) == sum(x.nbytes for x in jax.tree.leaves(state))
    assert held + words < found.device < found.bytes
    assert found.device < held + 2 * words + 1e7  # what a batch takes is small here


def test_costs_grow_with_what_makes_them(planned):
    plan, found = planned("--epochs", 4)
    _, longer = planned("--epochs", 8)
    assert longer.steps == 2 * found.steps and longer.step == pytest.approx(found.step)
    assert longer.judging == pytest.approx(found.judging) and longer.device == found.device
    _, wider = planned("--epochs", 4, "--dim", 200)
    assert wider.step > 1.3 * found.step and wider.judging > found.judging
    assert wider.device - found.device > 99 * 4 * model.table_rows(plan.config)
    _, layers = planned("--epochs", 4, "--hidden", 256, 256)
    assert layers.step > 1.3 * found.step and layers.before > found.before
    _, filters = planned("--epochs", 4, "--model", "cnn")
    assert filters.step > 2 * found.step
    assert found.seconds == pytest.approx(found.before + found.compiling + found.steps * found.step
                                          + 4 * found.judging + found.saving)


def test_measuring_leaves_the_plan_as_it_was(planned):
    plan, _ = planned()
    before = jax.tree.map(np.copy, plan.arrays["valid"]), dict(plan.config)
    train.expected(plan, 10)
    assert before[1] == plan.config
    assert jax.tree.all(jax.tree.map(np.array_equal, before[0], plan.arrays["valid"]))


def test_several_devices_are_not_foreseen(planned, monkeypatch):
    plan, _ = planned()
    monkeypatch.setattr(devices, "mesh", lambda: type("Mesh", (), {"size": 4}))
    assert train.expected(plan, 10) is None


# --- what is said -----------------------------------------------------------------------------------------------------

FOUND = costs.Costs(1.0, 0.5, 100, 0.1, 10, 2.0, 3.0, 2_000_000_000, 1_500_000_000)


@pytest.mark.parametrize("free, warned", [(10 ** 12, False), (None, False), (5 * 10 ** 8, True)])
def test_a_warning_where_memory_will_not_do(monkeypatch, capsys, free, warned):
    monkeypatch.setattr(costs, "used", lambda: 10 ** 9)
    monkeypatch.setattr(costs, "free", lambda: free)
    costs.warn(FOUND)
    error = capsys.readouterr().err
    assert error.count("\n") == warned
    if warned:
        assert error.startswith("warning: ") and "1.0 GB more of memory" in error and "500 MB are free" in error


def test_a_warning_where_the_devices_memory_will_not_do(monkeypatch, capsys):
    monkeypatch.setattr(costs, "free", lambda: None)
    monkeypatch.setattr(costs, "free_on_device", lambda: 10 ** 9)
    costs.warn(FOUND)
    assert "1.5 GB more on the device" in capsys.readouterr().err


def test_what_the_system_does_not_say_is_not_guessed(monkeypatch):
    def refused(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(costs.Path, "read_text", refused)
    assert costs.used() is None and costs.free() is None


@pytest.mark.parametrize("limit, wanted", [("max", 8_000), ("5000000", 5_000_000 - 2_000_000 + 500_000)])
def test_limits_on_the_group_count(monkeypatch, limit, wanted):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    8000 kB\n", "/proc/self/cgroup": "0::/a/b\n",
             "/sys/fs/cgroup/a/memory.max": f"{limit}\n", "/sys/fs/cgroup/a/memory.current": "2000000\n",
             "/sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 500000\n"}

    def read_text(path, encoding):
        if path.as_posix() not in files:
            raise FileNotFoundError
        return files[path.as_posix()]

    monkeypatch.setattr(costs.Path, "read_text", read_text)
    assert costs.free() == (wanted * 1024 if limit == "max" else wanted)


@pytest.mark.parametrize("seconds, said", [(0.21, "0.2 s"), (42, "42 s"), (119, "119 s"), (200, "3.3 minutes"),
                                           (1900, "32 minutes"), (9000, "2.5 hours"), (90_000, "25 hours")])
def test_durations(seconds, said):
    assert costs.duration(seconds) == said


def test_what_is_left_counts_judging_and_saving(monkeypatch, capsys):
    """By a clock that the test moves: 100 steps in 5 epochs, a chunk is 5 steps and takes 1 s, but the first 3 s;
    judging takes 4 s."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    config = {"epochs": 5, "steps": 100, "rows": 1000, "lr": 1.0}
    shown = progress.Progress(config, {"lr": "lr"}, lambda config, rate: lambda step: 1.0, 0,
                              progress.Place(90.0, others=50.0, expected=FOUND._replace(epochs=5)))
    # A chunk that was begun is done when the next but one is, the first of an epoch at once.
    for step, seconds in ((5, 3), (10, 0), (15, 1), (20, 1)):
        now[0] += seconds
        shown.show(step, 1.0)
    assert shown.speed() == pytest.approx(0.2)
    # As many seconds a step as twice what was expected, so judging will take as much longer: 2 s become 4.
    assert shown.left(20) == pytest.approx(80 * 0.2 + 5 * (2 * 2 + 3 / 5) + 0.25)
    for step, seconds in ((25, 6), (30, 0), (35, 1), (40, 1), (45, 6)):
        if seconds == 6:
            shown.pause(4)
        now[0] += seconds
        shown.show(step, 1.0)
    assert shown.speed() == pytest.approx(0.2) and shown.left(45) == pytest.approx(55 * 0.2 + 3 * 4)
    said = capsys.readouterr().out
    assert said.count("costs about") == 1 and "0:13 elapsed" in said
    assert all(of_all == left + 50 for left, of_all in (
        (60 * int(a) + int(b), 60 * int(c) + int(d)) for a, b, c, d in re.findall(
            r"(\d+):(\d+) left, (\d+):(\d+) of all", said)))


def test_a_resumed_training_has_less_left():
    shown = progress.Progress({"epochs": 10, "steps": 100, "rows": 1000}, {}, None, 50, progress.Place(0.0))
    shown.chunks, shown.pauses = [(60, 2.0)], [3.0]
    assert shown.speed() == pytest.approx(0.2) and shown.left(60) == pytest.approx(40 * 0.2 + 4 * 3)


# --- the scripts ------------------------------------------------------------------------------------------------------

def test_costs_alone_write_nothing(tiny, tmp_path):
    flags = ("--costs", "--model", "mlp", "cnn", "--refit", "--epochs", 3)
    done = run_script("train", "--data", tiny / "data/prepared", *flags, cwd=tmp_path)
    *lines, total = done.stdout.splitlines()
    assert total.startswith("all 4 about ") and total.endswith(", with their refits")
    assert [line.split()[:3] for line in lines] == [["mlp", "costs", "about"], ["cnn", "costs", "about"]]
    assert all(" an epoch) and " in line and line.endswith("B of memory") for line in lines) and not done.stderr
    assert not [name for name in snapshot(tmp_path) if not name.endswith("mlflow.db")]  # which conftest puts there


def test_costs_of_a_model_that_cannot_be(tiny, tmp_path):
    flags = ("--costs", "--model", "encoder")
    done = run_here("train", "--data", tiny / "data/prepared", *flags, cwd=tmp_path, check=False)
    assert_one_line_error(done, "--encoder use")


def test_costs_are_said_before_the_first_step(tiny, tmp_path):
    done = run_here("train", "--data", tiny / "data/prepared", "--epochs", 1, "--dim", 8, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("costs about ") and "epoch   0" in "\n".join(lines[1:])


def test_prepare_tells_what_training_takes(tiny, prep, monkeypatch):
    monkeypatch.setattr(prepare, "MANY_ROWS", 10)
    lines = prep("--data", tiny / "tiny.csv").stdout.splitlines()
    at = lines.index("training on this machine:")
    assert [line.split()[:2] for line in lines[at + 1:]] == [["mlp:", "about"], ["cnn:", "about"], ["all", "2"]]


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_prepare_does_not_fail_with_train(tiny, prep, monkeypatch, python):
    monkeypatch.setattr(prepare, "MANY_ROWS", 10)
    monkeypatch.setattr(prepare.sys, "executable", python)
    done = prep("--data", tiny / "tiny.csv")
    assert done.stderr.splitlines()[-1].startswith("warning: what training takes is not known")
    assert done.stderr.count("warning: what") == 1 and "training on" not in done.stdout


def test_few_rows_are_prepared_without_it(tiny, prep, monkeypatch):
    monkeypatch.setattr(prepare.sys, "executable", "/nowhere/python")
    assert "training takes" not in prep("--data", tiny / "tiny.csv").stderr
