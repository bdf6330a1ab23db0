"""A headless chromium, driven over its DevTools protocol: enough of it for tests and screenshots."""
import base64
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowRight": (39, ""), "ArrowLeft": (37, "")}


def missing():
    """What a browser test lacks here, as a sentence; None: nothing."""
    try:
        import websocket  # noqa: F401
    except ImportError:
        return "no Python package websocket (apt install python3-websocket)"
    if not any(map(shutil.which, NAMES)):
        return "no chromium (apt install chromium)"
    return None


def end_with_the_test():
    """Whoever started this process may be killed; then it ends too."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Browser:
    """One page. Use it in a with statement."""

    def __init__(self, width=1280, height=800):
        self.place = tempfile.mkdtemp(prefix="gptoss-browser-")
        self.errors = []   # what the page threw or logged as an error
        self.requests = []  # the URLs that it asked for
        self.socket, self.serial = None, 0
        command = [next(filter(None, map(shutil.which, NAMES))), "--headless=new", "--no-sandbox", "--disable-gpu",
                   "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
                   "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
                   "--force-color-profile=srgb", "--remote-debugging-port=0", "--remote-allow-origins=*",
                   f"--user-data-dir={self.place}", f"--window-size={width},{height}", "about:blank"]
        with open(os.path.join(self.place, "log"), "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            start_new_session=True, preexec_fn=end_with_the_test)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self):
        import websocket
        port_file, end = os.path.join(self.place, "DevToolsActivePort"), time.monotonic() + 30
        while not os.path.exists(port_file) or not open(port_file).read().strip():
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError("chromium did not start: " + open(os.path.join(self.place, "log")).read()[-2000:])
            time.sleep(0.02)
        port = open(port_file).read().split()[0]
        pages = []
        while not pages:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                pages = [p for p in json.load(answer) if p["type"] == "page"]
            if time.monotonic() > end:
                raise AssertionError("chromium has no page")
        self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=30)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(domain + ".enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.socket:
            self.socket.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: all of its processes
        self.process.wait()
        shutil.rmtree(self.place, ignore_errors=True)

    def call(self, method, **parameters):
        self.serial += 1
        self.socket.send(json.dumps({"id": self.serial, "method": method, "params": parameters}))
        while True:
            m = json.loads(self.socket.recv())
            if m.get("id") == self.serial:
                if "error" in m:
                    raise AssertionError(f"{method}: {m['error']}")
                return m["result"]
            if m.get("method") == "Runtime.exceptionThrown":
                d = m["params"]["exceptionDetails"]
                self.errors.append(d.get("exception", {}).get("description", d["text"]))
            elif m.get("method") == "Log.entryAdded" and m["params"]["entry"]["level"] == "error":
                self.errors.append(m["params"]["entry"]["text"] + " " + m["params"]["entry"].get("url", ""))
            elif m.get("method") == "Network.requestWillBeSent":
                self.requests.append(m["params"]["request"]["url"])

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def look(self, width, height, dark=False, still=False, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}])

    def evaluate(self, script):
        r = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in r:
            d = r["exceptionDetails"]
            raise AssertionError(d.get("exception", {}).get("description", d["text"]) + " in " + script)
        return r["result"].get("value")

    def wait(self, script, timeout=20):
        """Until the script's value is true; gives that value back."""
        end = time.monotonic() + timeout
        while True:
            value = self.evaluate(f"(v => v instanceof Node ? true : v)({script})")
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"not within {timeout} s: {script}\n" + self.evaluate("document.body.innerText"))
            time.sleep(0.02)

    def click(self, selector):
        """As a mouse does it, so that what lies on top is what is hit."""
        at = self.wait(f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            if (!e) return null;
            e.scrollIntoView({{block: 'nearest'}});
            const r = e.getBoundingClientRect();
            return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, name, shift=False):
        code, text = KEYS[name]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code,
                      modifiers=8 if shift else 0, **({"text": text} if text and kind == "keyDown" else {}))

    def screenshot(self, path):
        image = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        with open(path, "wb") as file:
            file.write(image)
        return len(image)
