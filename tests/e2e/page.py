"""The gateway's page in a real browser: what a person sees and does."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import browser
from harness import Server, environment, program, run_tests

if browser.missing():
    print(f"skipped: {browser.missing()}")
    sys.exit(77)
if not os.path.exists(program("gptoss-gateway")):
    print("skipped: gptoss-gateway was not built (apt install libmicrohttpd-dev libjansson-dev)")
    sys.exit(77)

LAST = "[...document.querySelectorAll('.assistant')].pop()"
DONE = f"document.querySelectorAll('.assistant').length === %d && !{LAST}.hasAttribute('aria-busy')"


class Gateway:
    """gptoss-gateway in front of a Server. Use it in a with statement."""

    def __init__(self, server, *options):
        self.log_path = os.path.join(server.place, "gateway.log")
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [program("gptoss-gateway"), "--coordinator", server.endpoint, "--port", "0", *options],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment(),
                preexec_fn=browser.end_with_the_test)
        self.url = None

    def said(self):
        with open(self.log_path) as log:
            return log.read()

    def __enter__(self):
        end = time.monotonic() + 20
        while not self.url:
            found = re.search(r"http://127\.0\.0\.1:\d+", self.said())
            if found and self.ready(found[0]):
                self.url = found[0]
            elif time.monotonic() > end or self.process.poll() is not None:
                self.__exit__()
                raise AssertionError("the gateway did not start: " + self.said())
            time.sleep(0.02)
        return self

    @staticmethod
    def ready(url):
        try:
            with urllib.request.urlopen(url + "/readyz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def chat(self, text, **more):
        body = {"messages": [{"role": "user", "content": text}], "reasoning_effort": "medium", **more}
        request = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["choices"][0]["message"]


RANKS = 3
_all = contextlib.ExitStack()  # what all tests share: starting it takes longer than most of them
_shared = []


@contextlib.contextmanager
def opened():
    """(server, gateway, page): the page is new, nothing is kept of before. At the end it has thrown nothing, and asked
    only its own server."""
    if not _shared:
        server = _all.enter_context(Server(RANKS))
        _shared[:] = [server, _all.enter_context(Gateway(server)), _all.enter_context(browser.Browser())]
    server, gateway, page = _shared
    page.look(1280, 800)
    page.go(gateway.url + "/livez")  # a page that is left ends what it asked for
    server.until(lambda s: s.ready and s.requests_running + s.requests_waiting == 0)
    page.evaluate("sessionStorage.clear(); localStorage.clear()")
    page.errors.clear()
    page.requests.clear()
    page.go(gateway.url + "/")
    yield server, gateway, page
    page.evaluate("0")
    assert not page.errors, page.errors
    assert all(url.startswith(("data:", gateway.url + "/")) for url in page.requests), page.requests


def ask(page, text):
    page.click("#prompt")
    page.type(text)
    page.press("Enter")


def set_settings(page, effort=None, example_tool=False, **fields):
    page.click("#open-settings")
    if example_tool:
        page.click("#example-tool")
    if effort:
        page.click(f"#effort input[value={effort}]")
    for name, value in fields.items():
        page.click("#" + name)
        page.evaluate(f"document.getElementById('{name}').select()")
        page.type(str(value))
    page.click("#settings .main")
    page.wait("!document.querySelector('dialog[open]')")


def at_length(page, tokens):
    """What the page asks from now on goes on past the end of the answer."""
    page.evaluate("""{ const plain = window.fetch; window.fetch = (url, o) => plain(url, o && o.body
        ? {...o, body: JSON.stringify({...JSON.parse(o.body), ignore_eos: true, max_completion_tokens: %d})} : o); }""" % tokens)


def words(text):
    return " ".join(text.split())


def test_a_chat_is_answered_as_the_interface_answers():
    question = "What is the capital of Greece?"
    with opened() as (server, gateway, page):
        want = gateway.chat(question, seed=11, temperature=0.8)
        set_settings(page, seed=11, temperature=0.8)
        ask(page, question)
        page.wait(DONE % 1)
        assert words(page.evaluate(f"{LAST}.querySelector('.answer').innerText")) == words(want["content"])
        assert page.evaluate(f"{LAST}.querySelector('.reasoning .text').textContent") == want["reasoning_content"]
        figures = page.evaluate(f"{LAST}.querySelector('.figures').innerText")
        assert re.search(r"\d+ tokens · prompt \d+.* · first after", figures), figures
        # the next question knows what was said; an answer is asked for anew
        ask(page, "And of France?")
        page.wait(DONE % 2)
        assert page.evaluate("messages().map(m => m.role).join()") == "user,assistant,user,assistant"
        page.click(".assistant:last-of-type .buttons button:last-child")
        page.wait("turns.length === 4 && " + DONE % 2)
        # a question is changed: what came after it goes
        page.evaluate("document.querySelector('.user button:last-child').focus()")
        page.press("Enter")
        page.wait("document.activeElement.tagName === 'TEXTAREA' && document.activeElement.id !== 'prompt'")
        page.type(" And of Italy?")
        page.press("Enter")
        page.wait(f"turns.length === 2 && turns[0].content === {json.dumps(question + ' And of Italy?')} && " + DONE % 1)
        # it is all there when the page is loaded anew; a new chat is empty
        page.go(gateway.url + "/?again")
        assert page.wait("turns.length") == 2
        page.click("#new")
        assert page.evaluate("turns.length + document.querySelectorAll('.turn').length") == 0


def test_an_answer_is_stopped():
    with opened() as (server, gateway, page):
        at_length(page, 4000)
        ask(page, "Count from 1 to 300")
        page.wait("turns.length === 2 && turns[1].content.length > 30")
        page.press("Escape")
        page.wait(DONE % 1)
        assert "stopped" in page.evaluate(f"{LAST}.querySelector('.figures').innerText")
        shown = page.evaluate(f"{LAST}.querySelector('.answer').innerText")
        assert len(shown) > 10, shown
        server.until(lambda s: s.requests_running == 0, 5)
        assert page.evaluate("document.activeElement.id") == "prompt"
        ask(page, "Count from 1 to 300")
        page.wait("turns.length === 4 && turns[3].content.length > 30")
        page.click("#stop")
        page.wait(DONE % 2)
        server.until(lambda s: s.requests_running == 0, 5)


def test_a_tool_call_is_shown_and_its_result_sent_back():
    with opened() as (server, gateway, page):
        page.click("#open-settings")
        page.click("#tools")
        page.type("[1")
        assert "not JSON" in page.evaluate("document.getElementById('tools-wrong').textContent")
        page.click("#settings .main")
        assert page.evaluate("!!document.querySelector('dialog[open]')")  # not as long as it is wrong
        page.click("#example-tool")
        page.click("#settings .main")
        page.wait("!document.querySelector('dialog[open]')")
        set_settings(page, "low", temperature=0)
        ask(page, "What is the weather in Paris?")
        page.wait(DONE % 1 + " && document.querySelector('.call textarea')")
        assert page.evaluate("document.querySelector('.call h3 code').textContent") == "get_weather"
        assert json.loads(page.evaluate("document.querySelector('.call pre').textContent")) == {"city": "Paris"}
        assert page.evaluate("document.activeElement.closest('.call') !== null")  # ready to be typed into
        page.type('{"sky": "clear"}')
        page.press("Enter")
        page.wait(DONE % 2)
        assert page.evaluate("turns[3].finish") == "stop" and page.evaluate("turns[3].content.length > 0")
        assert page.evaluate("document.querySelector('.call .result pre').textContent") == '{"sky": "clear"}'
        sent = page.evaluate("messages()")
        assert [m["role"] for m in sent] == ["user", "assistant", "tool", "assistant"], sent
        assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"], sent


def workers(server):
    """The pids of the ranks, by stage, as the status tells."""
    return [s["pid"] for s in server.ask("--status")["stages"]]


def test_a_stage_that_is_killed_is_seen_and_the_answer_goes_on():
    question = "Count from 1 to 300"
    with opened() as (server, gateway, page):
        want = gateway.chat(question, seed=3, temperature=0, ignore_eos=True, max_completion_tokens=900)
        set_settings(page, seed=3, temperature=0)
        at_length(page, 900)
        page.wait("document.querySelectorAll('.stage[data-state=ready]').length === 3")
        page.evaluate("""window.seen = []; setInterval(() => { const now =
            [...document.querySelectorAll('.stage')].map(e => e.dataset.state).join();
            if (seen[seen.length - 1] !== now) seen.push(now); }, 10); 0""")
        ask(page, question)
        page.wait("turns.length === 2 && turns[1].content.length > 100")
        victim = workers(server)[1]
        os.kill(victim, signal.SIGKILL)
        page.wait("document.querySelectorAll('.stage')[1].dataset.state === 'dead'", 3)
        assert f"pid {victim}" in page.evaluate("document.querySelectorAll('.stage .say')[1].textContent")
        page.wait("[...document.querySelectorAll('.stage')].every(e => e.dataset.state === 'ready')")
        page.wait(DONE % 1, 30)
        assert page.evaluate("turns[1].content") == (want["content"] or ""), page.evaluate("turns[1]")
        assert page.evaluate("turns[1].finish") == "length"
        assert re.search(r"rank 1 .* died.*down for [\d.]+ m?s", page.evaluate("document.querySelector('#losses li').textContent"))
        states = page.evaluate("seen")
        assert all(state.split(",")[1] == "dead" or "dead" not in state for state in states), states
        assert workers(server)[1] != victim


def test_the_pipeline_is_shown_as_it_is():
    with opened() as (server, gateway, page):
        at_length(page, 7000)
        ask(page, "Count from 1 to 300")
        page.wait("document.getElementById('tiles').innerText.replace(/\\s+/g, ' ').includes('1 running') && "
                  "parseFloat(document.querySelector('.tile .big').textContent.replace(',', '')) > 5")
        status = server.ask("--status")
        shown = page.evaluate("[...document.querySelectorAll('.stage')].map(e => e.innerText)")
        assert len(shown) == RANKS, shown
        for stage, text in zip(status["stages"], shown):
            assert stage["host"] in text and stage["device"] in text, text
            assert f"layers {stage['layer_first']}–{stage['layer_first'] + stage['layer_count'] - 1}" in text, text
        busy = [float(re.search(r"busy ([\d.]+) %", words(text))[1]) for text in shown]
        assert all(0 < share <= 100 for share in busy), shown
        assert re.search(r"[\d,]+–[\d,]+ · \d", page.wait("document.getElementById('film').textContent"))
        # steps are drawn: along the middle of the first lane, more than the moving line differs from the lane
        page.wait("""(() => { const c = document.getElementById('trace'), y = Math.round(c.height / %d / 2);
            const row = new Uint32Array(c.getContext('2d').getImageData(30, y, c.width - 30, 1).data.buffer), seen = {};
            for (const p of row) seen[p] = (seen[p] || 0) + 1;
            return row.length - Math.max(...Object.values(seen)) > 8; })()""" % RANKS)
        page.press("Escape")


def test_it_fits_a_phone_and_works_by_keyboard():
    with opened() as (server, gateway, page):
        for width, dark in ((360, True), (768, False), (1920, True)):
            page.look(width, 740, dark, still=True)
            for tab in ("pipe", "chat"):
                page.evaluate(f"showTab('{tab}')")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, tab)
        page.look(360, 740)
        assert page.evaluate("getComputedStyle(document.getElementById('pipe')).display") == "none"
        page.evaluate("document.getElementById('tab-chat').focus()")
        page.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == "tab-pipe"
        assert page.evaluate("getComputedStyle(document.getElementById('chat')).display") == "none"
        page.look(1280, 800)
        order = []
        page.evaluate("document.querySelector('.skip').focus()")
        for _ in range(12):
            page.press("Tab")
            order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 16)"))
        wanted = ["new", "open-settings", "theme", "prompt", "send"]
        assert [o for o in order if o in wanted] == wanted, order
        page.press("Tab", shift=True)
        page.click("#prompt")
        page.type("one")
        page.press("Enter", shift=True)
        page.type("two")
        assert page.evaluate("document.getElementById('prompt').value") == "one\ntwo"
        assert page.evaluate("turns.length") == 0
        # every control has a name
        nameless = page.evaluate("""[...document.querySelectorAll('button, input, textarea, select')].filter(e =>
            !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.outerHTML)""")
        assert nameless == [], nameless


STREAMS = """
    let tries = 0;
    const chunk = (delta, finish) => 'data: ' + JSON.stringify({choices: [{index: 0, delta, finish_reason: finish || null}]}) + '\\r\\n\\r\\n';
    const call = (name, text) => chunk({tool_calls: [{index: 0, ...(name ? {id: 'c1', type: 'function'} : {}),
        function: {...(name ? {name} : {}), arguments: text}}]});
    window.release = null;
    const plain = window.fetch;
    window.fetch = async (url, o) => {
        if (!o || !o.body) return plain(url, o);
        const stream = parts => new Response(new ReadableStream({async start(c) {
            for (const p of parts) {
                if (p === null) await new Promise(go => { window.release = go; });
                else for (const half of [p.slice(0, 9), p.slice(9)]) c.enqueue(new TextEncoder().encode(half));
            }
            c.close();
        }}), {headers: {'Content-Type': 'text/event-stream'}});
        switch (JSON.parse(o.body).messages.pop().content) {
        case 'busy': return ++tries === 1 ? new Response('{"error": {"message": "full"}}', {status: 429, headers: {'Retry-After': '0'}})
            : stream([chunk({content: 'in the end'}), chunk({}, 'stop'), 'data: [DONE]\\n\\n']);
        case 'pause': return stream([chunk({content: 'one '}), ': waiting\\n\\n', null, chunk({content: 'two \u00e9'}), chunk({}, 'stop'), 'data: [DONE]\\n\\n']);
        case 'call': return stream([call('f', ''), call('', '{"a"'), null, call('', ': 1}'), chunk({}, 'tool_calls'), 'data: [DONE]\\n\\n']);
        case 'cut': return stream([chunk({content: 'half an'})]);
        case 'fault': return stream([chunk({content: 'x'}), 'data: {"error": {"message": "the ranks are lost"}}\\n\\n']);
        default: return new Response('{"error": {"message": "temperature is 9, more than 2"}}', {status: 400});
        }
    }; 0
"""


def test_pauses_errors_and_a_full_queue_are_told():
    with opened() as (server, gateway, page):
        page.evaluate("{" + STREAMS + "}")
        said = f"{LAST}.innerText"
        ask(page, "busy")
        page.wait(DONE % 1)
        assert "in the end" in page.evaluate(said)
        ask(page, "pause")
        page.wait(f"release && turns[3].content === 'one ' && {said}.includes('Waiting for the pipeline')")
        page.evaluate("release(); 0")
        page.wait(DONE % 2)
        assert "one two \u00e9" in page.evaluate(said) and "Waiting" not in page.evaluate(said)
        page.evaluate("release = null; 0")
        ask(page, "call")
        page.wait(f"release && {LAST}.querySelector('.call pre') && {LAST}.querySelector('.call pre').textContent === '{{\"a\"'")
        page.evaluate("release(); 0")  # its arguments were shown as they came
        page.wait(DONE % 3)
        assert page.evaluate("turns[5].calls[0]") == {"id": "c1", "name": "f", "arguments": '{"a": 1}'}
        for n, (text, wanted) in enumerate((("cut", "ended before the answer did"), ("fault", "the ranks are lost"),
                                            ("bad", "temperature is 9, more than 2"))):
            ask(page, text)
            page.wait(DONE % (4 + n))
            assert wanted in page.evaluate(f"{LAST}.querySelector('[role=alert]').innerText"), text
        page.errors.clear()  # the browser counts the server's refusals as such


def test_what_the_model_says_stays_text():
    hostile = ("<script>window.hacked = 1</script> <img src=x onerror='window.hacked = 2'>\n\n[a](javascript:window.hacked=3) "
               "[b](https://example.org/)\n\n```html\n<b onclick=x>\n```\n\n| <i>a</i> | b |\n|---|---|\n| <svg onload=x> | `c` |\n\n"
               "- **bold** <u>\n  - *inner*\n\n> quote <iframe>\n\n" + "*" * 3000 + "_a" * 3000 + "\n" + "> " * 200 + "deep\n" + "- " * 200)
    with opened() as (server, gateway, page):
        begin = time.monotonic()
        page.evaluate(f"""{{ const t = add({{role: 'assistant', reasoning: '<b>x</b>', content: {json.dumps(hostile)},
            calls: [{{id: 'a', name: '<b>n</b>', arguments: '<b>'}}], finish: 'stop', error: '<b>e</b>'}}); t.view.show(); }}""")
        assert time.monotonic() - begin < 2
        tags = set(page.evaluate("[...document.querySelectorAll('.turn *')].map(e => e.tagName.toLowerCase())"))
        assert not tags & {"script", "img", "iframe", "svg", "b", "u", "i"}, tags
        assert {"strong", "table", "pre", "li", "blockquote", "em"} <= tags, tags
        assert page.evaluate("[...document.querySelectorAll('.turn a')].map(a => a.href)") == ["https://example.org/"]
        assert page.evaluate("window.hacked") is None


def test_a_key_is_asked_for():
    with opened() as (server, _, page):
        path = os.path.join(server.place, "keys")
        with open(path, "w") as file:
            file.write("open-sesame-please-0123456789abcdef\n")
        os.chmod(path, 0o600)
        with Gateway(server, "--api-key-file", path) as gateway:
            page.go(gateway.url + "/")
            page.wait("document.getElementById('key').open")
            page.type("wrong")
            page.press("Enter")
            page.wait("document.getElementById('key').open && document.getElementById('key-wrong').textContent")
            page.type("open-sesame-please-0123456789abcdef")
            page.press("Enter")
            page.wait("document.querySelector('.stage[data-state=ready]')")
            ask(page, "What is the capital of Greece?")
            page.wait(DONE % 1)
            assert page.evaluate("turns[1].content.length > 0")
        page.go("about:blank")
        page.errors.clear()  # the browser counts each 401 as one
        page.requests.clear()


if __name__ == "__main__":
    with _all:
        run_tests(sys.modules[__name__])
