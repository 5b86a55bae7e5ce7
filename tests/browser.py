"""A browser without a window, for tests of pages: chromium, driven by the HTTP of chromedriver (W3C WebDriver)."""
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

MISSING = None if shutil.which("chromium") and shutil.which("chromedriver") else (
    "no chromium here: apt-get install chromium chromium-driver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # what WebDriver calls a reference to an element
ENTER, ESCAPE, LEFT, UP, RIGHT, DOWN, CONTROL, TAB = "\ue007\ue00c\ue012\ue013\ue014\ue015\ue009\ue004"
PATIENCE = 20  # seconds until what a page is to do has happened


class Browser:
    """One window; as from `opened`."""

    def __init__(self, url, session, downloads):
        self.url, self.session, self.downloads = url, session, downloads

    def ask(self, path, value=None, method="POST"):
        return request(f"{self.url}/session/{self.session}/{path}", method, value)

    def tell(self, command, **parameters):
        """A command of the DevTools protocol."""
        return self.ask("goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, path):
        self.ask("url", {"url": Path(path).resolve().as_uri()})

    def run(self, script, *args):
        """What a script in the page returns."""
        return self.ask("execute/sync", {"script": script, "args": args})

    def text(self, selector):
        """The text of an element as it is shown."""
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def wait_for(self, selector, part):
        """Wait until the text of an element holds another."""
        end = time.monotonic() + PATIENCE
        while part not in (found := self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)):
            assert time.monotonic() < end, (selector, part, found)
            time.sleep(0.02)

    def click(self, selector):
        found = self.ask("element", {"using": "css selector", "value": selector})
        self.ask(f"element/{found[ELEMENT]}/click", {})

    def press(self, keys, held=""):
        """Press keys one after the other, with one held meanwhile, where the focus is."""
        steps = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        if held:
            steps = [{"type": "keyDown", "value": held}, *steps, {"type": "keyUp", "value": held}]
        self.ask("actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def downloaded(self, name):
        """The content of the only file that was downloaded, once it is whole; the file is removed."""
        path, end = self.downloads / name, time.monotonic() + PATIENCE
        while [*self.downloads.iterdir()] != [path] or not path.stat().st_size:
            assert time.monotonic() < end, [*self.downloads.iterdir()]
            time.sleep(0.02)
        content = path.read_bytes()
        path.unlink()
        return content

    def errors(self):
        """What the console says since it was asked last, such as errors, and what a policy has refused."""
        return [entry["message"] for entry in self.ask("se/log", {"type": "browser"})]


def request(url, method, value=None):
    content = None if method in ("GET", "DELETE") else json.dumps(value or {}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine
    try:
        with opener.open(urllib.request.Request(url, content, method=method), timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"].partition("\n")[0]) from None


@contextmanager
def opened(folder, **preferences):
    """A Browser that keeps what it needs in a new folder; preferences: of chromium, see its pref_names.cc."""
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    arguments = ["--headless=new", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}/profile",
                 *(["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else [])]
    options = {"binary": shutil.which("chromium"), "args": arguments, "prefs": preferences | {
        "download.default_directory": str(downloads)}}
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as driver:
        try:
            port = next(found[1] for line in driver.stdout if (found := re.search(r"started .* on port (\d+)", line)))
            url = f"http://127.0.0.1:{port}"
            session = request(f"{url}/session", "POST", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            try:
                yield Browser(url, session, downloads)
            finally:
                request(f"{url}/session/{session}", "DELETE")
        finally:
            driver.terminate()
