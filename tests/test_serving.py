"""Exported models in MLflow: logged, registered, and served by its own server to real clients on the loopback."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from conftest import assert_one_line_error, environment, run_here, texts

import evaluate

LABELS = {"FUNDAS", "CELULARES", "MESAS", "SILLAS"}


@pytest.fixture(scope="module")
def registered(trained):
    """The folder of a project whose run `bag` is a registered model, and what export.py printed."""
    done = run_here("export", "--ckpt", "bag", "--register", "titles", "--alias", "champion", cwd=trained)
    return trained, done.stdout


@pytest.fixture(scope="module")
def server(registered):
    """A function of a request (an object, or bytes to send as they are): (status, answer) of the running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/titles@champion", "--env-manager", "local",
         "--host", "127.0.0.1", "--port", str(port)], cwd=registered[0], start_new_session=True,
        env=environment(MLFLOW_TRACKING_URI="sqlite:///mlflow.db",
                        PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ask(request):
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(
                    f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    try:
        for line in process.stdout:
            if "Application startup complete" in line:
                break
        else:
            pytest.fail(f"the server ended with status {process.wait()}")
        while socket.socket().connect_ex(("127.0.0.1", port)):  # it listens a moment later
            time.sleep(0.1)
        threading.Thread(target=lambda: shutil.copyfileobj(process.stdout, open(os.devnull, "w")), daemon=True).start()
        yield ask
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_registered_model_belongs_to_the_run(registered):
    import mlflow
    folder, printed = registered
    assert printed.startswith("models:/titles/1\nserve it: ")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    version = client.get_model_version_by_alias("titles", "champion")
    run_id = (folder / "runs/bag/mlflow.txt").read_text().strip()
    assert str(version.version) == "1" and version.run_id == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    held = [path for path in (folder / "mlruns").rglob("*") if path.is_file() and "classifier" in str(path)
            or path.name in ("classify.py", "model.npz", "requirements.txt")]
    assert {"classify.py", "model.npz"} <= {path.name for path in held}
    assert not [path for path in held if path.suffix == ".pkl"]
    requirements = next(path for path in held if path.name == "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in requirements} == {"mlflow", "numpy"}


@pytest.mark.slow
def test_the_server_says_what_the_run_says(registered, server):
    folder, _ = registered
    titles = (texts("test", folder / "data/prepared") * 13)[:1000]
    status, answer = server({"inputs": titles, "params": {"top": 3}})
    assert status == 200 and len(answer["predictions"]) == 1000
    expected = evaluate.load("bag", folder=folder / "runs").predict(titles, top=3)
    for row, wanted in zip(answer["predictions"], expected, strict=True):
        assert [*row] == ["category", "probability", "category_2", "probability_2", "category_3", "probability_3"]
        chances = [row["probability"], row["probability_2"], row["probability_3"]]
        assert chances == pytest.approx([chance for _, chance in wanted], abs=0.01)  # int8
        assert row["category"] == wanted[0][0] or wanted[0][1] - wanted[1][1] < 0.01


@pytest.mark.slow
def test_tables_missing_titles_and_thresholds(registered, server):
    one = server({"inputs": ["funda azul"]})[1]["predictions"]
    assert one[0]["category"] in LABELS
    assert server({"dataframe_records": [{"title": "funda azul"}]})[1]["predictions"] == one
    status, answer = server({"dataframe_split": {"columns": ["title"], "data": [["funda azul"], [None], [""]]}})
    assert status == 200 and answer["predictions"][:2] == [*one, {"category": None, "probability": None}]
    assert answer["predictions"][2] == {"category": None, "probability": 0}
    for request in ({"inputs": ["funda azul", None]}, {"instances": ["funda azul", None]},
                    {"inputs": [{"title": "funda azul"}, {"title": None}]},
                    {"dataframe_records": [{"title": "funda azul"}, {"title": None}]}):
        assert server(request) == (200, {"predictions": [*one, {"category": None, "probability": None}]})
    assert server({"inputs": [None]})[1]["predictions"] == [{"category": None, "probability": None}]
    chance, classifier = one[0]["probability"], evaluate.load("bag", folder=registered[0] / "runs")
    assert chance >= classifier.threshold(0.6)
    likely = classifier.promising.predict(["funda azul"])[0][0]  # of which a precision is promised
    for params, wanted in (({"threshold": 0.9999}, one[0]["probability"]), ({"precision": 0.9999}, likely[1])):
        chance = pytest.approx(wanted, abs=0.01)  # int8
        answer = server({"inputs": ["funda azul"], "params": params})[1]["predictions"]
        assert answer == [{"category": None, "probability": chance}]
        (answer,) = server({"inputs": ["funda azul"], "params": {"top": 2, **params}})[1]["predictions"]
        assert [*answer] == ["category", "probability", "candidate_1", "probability_1", "candidate_2", "probability_2"]
        assert [*answer.values()][:4] == [None, chance, one[0]["category"], chance]
    (answer,) = server({"inputs": ["funda azul"], "params": {"precision": 0.6}})[1]["predictions"]
    assert answer == {"category": likely[0], "probability": pytest.approx(likely[1], abs=0.01)}
    assert server({"inputs": []}) == (200, {"predictions": []})
    status, answer = server({"inputs": ["funda " * 170_000]})
    assert status == 200 and answer["predictions"][0]["category"] == "FUNDAS"


@pytest.mark.slow
@pytest.mark.parametrize(("request_", "word"), [
    (b'{"inputs": ["funda"', "valid JSON"), (["funda"], "dictionary"), ({"inputs": "funda"}, "title"),
    ({"dataframe_records": [{"name": "funda"}]}, "title"), ({"inputs": ["funda"], "params": {"top": 0}}, "top"),
    ({"inputs": ["funda"], "params": {"top": "x"}}, "top"),
    ({"inputs": ["funda"], "params": {"threshold": 1.5}}, "threshold"),
    ({"inputs": ["funda"], "params": {"precision": 95}}, "a share between 0 and 1"),
    ({"inputs": ["funda"], "params": {"precision": 0.9, "threshold": 0.9}}, "give one"),
    ({"inputs": ["funda"], "params": {"presicion": 0.9}}, "presicion"),
    *(({"inputs": ["funda", value]}, "title") for value in (1, 1.5, True, {"title": "x"}, ["mesa"])),
    ({"dataframe_split": {"columns": ["title"], "data": [["funda"], [7]]}}, "7 is no title"),
    ({"dataframe_records": [{"title": True}]}, "True is no title"), ({"instances": [7]}, "7 is no title")])
def test_a_wrong_request_gets_status_400_and_a_reason(request_, word, server):
    status, answer = server(request_)
    assert status == 400 and word in answer["message"]


@pytest.mark.slow
def test_eight_clients_at_once_lose_nothing(server):
    wanted = {title: server({"inputs": [title]}) for title in ("funda azul", "mesa", "silla negro", "celular nuevo")}
    wrong, answered, end = [], [], time.time() + 2

    def client():
        while time.time() < end:
            for title, answer in wanted.items():
                (answered if server({"inputs": [title]}) == answer else wrong).append(title)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not wrong and len(answered) >= 32


@pytest.mark.slow
def test_what_cannot_be_logged(trained, tmp_path):
    fails = [((), "--log"), (("--out", "x", "--alias", "a"), "--register")]
    for flags, word in fails:
        assert_one_line_error(run_here("export", "--ckpt", "bag", *flags, cwd=trained, check=False), word)
    done = run_here("export", "--ckpt", "bag", "--log", cwd=trained, check=False,
                    env={"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/none/mlflow.db"})
    assert_one_line_error(done, "MLflow at")
    done = run_here("export", "--ckpt", "bag", "--log", cwd=trained, check=False,
                    env={"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db"})
    assert_one_line_error(done, "MLflow at", "not found")
    done = run_here("export", "--ckpt", "bag", "--register", "a/b:c", cwd=trained, check=False)
    assert_one_line_error(done, "MLflow at", "a/b:c")
