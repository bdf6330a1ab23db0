"""The gateway over plain HTTP: routes, streams, errors, keys, hostile clients, crowds, losses."""
import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

from gateway_harness import ANSWER, BIN, QUESTION, THOUGHT, Stack, chat, environment, run_tests, tools

LONG = {"prompt": "In the beginning God created", "temperature": 0, "max_tokens": 300, "ignore_eos": True}


def streamed(stack, path, body):
    """The text of all deltas of a stream: (content, reasoning, finish, usage)."""
    content, reasoning, finish, usage = "", "", None, None
    for event in stack.events(path, {**body, "stream": True}):
        if isinstance(event, str):
            continue
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            delta = choice.get("delta", {})
            content += choice.get("text") or delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or ""
            finish = choice["finish_reason"] or finish
    return content, reasoning, finish, usage


def test_routes():
    with Stack(1, wait=False) as stack:
        assert stack.get("/livez").status == 200
        first = stack.get("/health")
        if first.status != 200:  # it may have been quick
            error = json.loads(first.text)["error"]
            assert first.status == 503 and error["message"], first.text
        stack.until_ready()
        assert json.loads(stack.get("/health").text) == {"status": "ok"}
        assert stack.get("/readyz").status == 200
        models = json.loads(stack.get("/v1/models").text)
        assert models["object"] == "list" and models["data"][0]["id"] == "gptoss-tiny-mxfp4", models
        assert json.loads(stack.get("/v1/models/gptoss-tiny-mxfp4").text)["object"] == "model"
        assert stack.get("/v1/models/other").status == 404
        page = stack.get("/")
        assert page.headers["Content-Type"].startswith("text/html") and "<title>" in page.text
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert stack.get("/favicon.ico").status == 204
        metrics = stack.get("/metrics").text
        for name in ("gptoss_num_requests_running", "gptoss_time_to_first_token_seconds_bucket",
                     'gptoss_gateway_requests_total{route="/v1/models",status="2xx"} 1',
                     "gptoss_gateway_coordinator_up 1"):
            assert name in metrics, (name, metrics[-3000:])
        pipeline = stack.request("GET", "/pipeline")
        begin, seen = time.monotonic(), []
        for line in pipeline:
            if line.startswith(b"data: "):
                seen.append(json.loads(line[6:]))
                if len(seen) == 4:
                    break
        assert time.monotonic() - begin < 4, "twice a second"
        assert seen[-1]["ready"] and seen[-1]["stages"][0]["layer_count"] == 24, seen[-1]


def test_an_answer_is_the_same_plain_and_streamed():
    with Stack(2) as stack:
        status, whole = stack.post("/v1/chat/completions", chat())
        message = whole["choices"][0]["message"]
        assert status == 200 and message["content"] == ANSWER, whole
        assert message["reasoning_content"] == THOUGHT, message
        content, reasoning, finish, usage = streamed(
            stack, "/v1/chat/completions", chat(stream_options={"include_usage": True}))
        assert (content, reasoning, finish) == (ANSWER, THOUGHT, "stop")
        assert usage["completion_tokens"] == whole["usage"]["completion_tokens"] == 30, usage
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 17, usage
        assert usage["prompt_tokens_details"]["cached_tokens"] > 0, usage
        _, plain = stack.post("/v1/completions", {**LONG, "max_tokens": 40})
        text, _, finish, _ = streamed(stack, "/v1/completions", {**LONG, "max_tokens": 40})
        assert plain["choices"][0]["text"] == text and finish == "length", (plain, text)
        _, response = stack.post("/v1/responses", {"input": QUESTION, "temperature": 0})
        assert [o["type"] for o in response["output"]] == ["reasoning", "message"], response
        assert response["output"][1]["content"][0]["text"] == ANSWER, response
        events = list(stack.events("/v1/responses", {"input": QUESTION, "temperature": 0, "stream": True}))
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == ANSWER
        assert events[-1]["response"]["output"][1]["content"] == response["output"][1]["content"]


def test_what_is_wrong_is_named():
    cases = [
        ({"messages": []}, 400, "messages"),
        ({}, 400, "messages"),
        (chat(frequency_penalty=0.5), 400, "frequency_penalty"),
        (chat(response_format={"type": "json_object"}), 400, "response_format"),
        (chat(logit_bias={"5": 1}), 400, "logit_bias"),
        (chat(nonsense=1), 400, "nonsense"),
        (chat(temperature="warm"), 400, "temperature"),
        (chat(temperature=-1), 400, "temperature"),
        (chat(n=0), 400, "n"),
        (chat(max_tokens=1.5), 400, "max_tokens"),
        (chat(stop=["x"] * 17), 400, "stop"),
        (chat(reasoning_effort="none"), 400, "reasoning_effort"),
        (chat(tool_choice="required"), 400, "tool_choice"),
        (chat(tools=[{"type": "web_search"}]), 400, "tools[0]"),
        (chat(top_logprobs=3), 400, "top_logprobs"),
        (chat(model="gpt-4"), 404, "model"),
        ({"messages": [{"role": "wizard", "content": ""}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, 400, "messages[0].name"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "?"}]}, 400, "messages[0].tool_call_id"),
    ]
    with Stack(1) as stack:
        for body, status, param in cases:
            got, answer = stack.post("/v1/chat/completions", body)
            error = answer["error"]
            assert got == status and error["param"] == param, (body, got, error)
            assert set(error) == {"message", "type", "param", "code"} and error["message"], error
        for path, body, param in (("/v1/completions", {"prompt": "x", "echo": True}, "echo"),
                                  ("/v1/completions", {"prompt": {}}, "prompt"),
                                  ("/v1/completions", {"prompt": [999999999]}, None),
                                  ("/v1/responses", {"input": "x", "store": True}, "store"),
                                  ("/v1/responses", {"input": "x", "previous_response_id": "r"}, "previous_response_id"),
                                  ("/v1/responses", {"input": [{"type": "item_reference"}]}, "input[0]")):
            got, answer = stack.post(path, body)
            assert got == 400 and answer["error"]["param"] == param, (path, body, got, answer)
        got, answer = stack.post("/v1/chat/completions", chat("word " * 20000))
        assert got == 400 and answer["error"]["code"] == "context_length_exceeded", answer
        json_type = {"Content-Type": "application/json"}
        for method, path, body, headers, status in (
                ("GET", "/nothing", None, {}, 404), ("GET", "/v1/chat/completions", None, {}, 405),
                ("POST", "/v1/models", "{}", json_type, 405), ("DELETE", "/v1/responses", None, {}, 405),
                ("POST", "/v1/chat/completions", "{}", {"Content-Type": "text/plain"}, 415),
                ("POST", "/v1/chat/completions", "{}", {}, 415),
                ("GET", "/v1/models", None, {"Host": "somewhere.example:8000"}, 403),
                ("POST", "/v1/chat/completions", "x" * (5 << 20), json_type, 413)):
            response = stack.request(method, path, body, headers)
            error = json.loads(response.read())["error"]
            assert response.status == status and error["type"] == "invalid_request_error", (path, response.status, error)


def test_only_who_shows_a_key_is_answered():
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("# two people\nsecret-key-one\nsecret-key-two   # the second\n")
        keys.flush()
        with Stack(1, gateway=["--api-key-file", keys.name], wait=False) as stack:
            stack.until_ready()
            for path in ("/", "/livez", "/readyz", "/health"):
                assert stack.get(path).status == 200, path
            wrong = [None, "", "Bearer", "Bearer ", "Bearer secret-key-on", "Bearer secret-key-one1", "Basic secret-key-one",
                     "Bearer secret-key-three", "Bearer " + "x" * 5000, "secret-key-one"]
            for value in wrong:
                headers = {"Authorization": value} if value is not None else {}
                for path in ("/v1/models", "/metrics", "/pipeline", "/nothing"):
                    response = stack.get(path, headers=headers)
                    assert response.status == 401, (value, path, response.status)
                    assert response.headers["WWW-Authenticate"] == "Bearer"
                status, answer = stack.post("/v1/chat/completions", chat(), headers=headers)
                assert status == 401 and answer["error"]["code"] == "invalid_api_key", (value, answer)
            for key in ("secret-key-one", "secret-key-two"):
                status, answer = stack.post("/v1/chat/completions", chat(), headers={"Authorization": "Bearer " + key})
                assert status == 200, answer


def test_a_coordinator_that_wants_keys():
    with tempfile.TemporaryDirectory() as place:
        keys = os.path.join(place, "keys")
        subprocess.run([os.path.join(BIN, "gptoss-coordinator"), "keygen", keys], check=True, capture_output=True,
                       env=environment())
        with Stack(1, coordinator=["--keys", keys], gateway=["--key", os.path.join(keys, "client.key")]) as stack:
            assert stack.post("/v1/chat/completions", chat())[1]["choices"][0]["message"]["content"] == ANSWER
        with Stack(1, coordinator=["--keys", keys], gateway=["--timeout", 1], wait=False) as stack:
            status, answer = stack.post("/v1/chat/completions", chat())
            assert status == 503 and answer["error"]["code"] == "no_coordinator", answer


def test_hostile_bodies_are_refused_and_leave_nothing():
    bodies = [b"", b"{", b"[]", b"null", b'"x"', b"{}" * 10, b'{"a":1,"a":2}', b"[" * 100000, b'{"messages":' + b"[" * 70,
              b'{"messages":' * 50000, b'{"messages":"\xff\xfe"}', b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
              b'{"n":' + b"9" * 100000 + b"}", b'{"n":1e999}', b'{"stop":[' + b'"a",' * 90000 + b'"a"]}', b"\0" * 1000]
    large = [b'{"messages":[' + b"[]," * 1300000 + b"[]]}", b'{"messages":[' + b"{}," * 1300000 + b"{}]}",
             json.dumps(chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"x": "y" * 3000000}}}])).encode(),
             b'{"messages":[{"role":"user","content":"' + b"\\u0000" * 600000 + b'"}]}']
    with Stack(1) as stack:
        before = None
        for again in range(2):
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
                for body in bodies + (large if path == "/v1/chat/completions" else []):
                    response = stack.request("POST", path, body, {"Content-Type": "application/json"})
                    answer = json.loads(response.read())
                    assert 400 <= response.status < 500, (path, body[:60], response.status, answer)
                    assert answer["error"]["message"], answer
            before = before or stack.memory()
        grown = stack.memory() - before
        assert grown < 16 << 20, f"{grown >> 20} MiB more"
        status, answer = stack.post("/v1/chat/completions", chat())
        assert status == 200 and answer["choices"][0]["message"]["content"] == ANSWER


def test_slow_and_flooding_clients_are_cut_and_hold_back_nobody():
    with Stack(1, gateway=["--request-timeout", 1]) as stack:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow_body, slow_head, silent = stack.socket(), stack.socket(), stack.socket()
        slow_body.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        slow_head.sendall(head)
        begin, cut = time.monotonic(), set()
        while len(cut) < 3:
            assert time.monotonic() - begin < 8, "slow clients were not cut"
            for s, bytes_ in ((slow_body, b" "), (slow_head, b"A: b\r\n"), (silent, b"")):
                try:
                    if s in cut:
                        continue
                    s.sendall(bytes_)
                    s.settimeout(0.02)
                    if s.recv(100) == b"":
                        cut.add(s)
                except socket.timeout:
                    pass
                except OSError:
                    cut.add(s)
            assert stack.get("/livez").status == 200
            time.sleep(0.05)
        flood = stack.socket()
        try:
            flood.sendall(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"y" * 500) for i in range(4000)))
            got = flood.recv(1000)
            assert got.split(b" ")[1] in (b"413", b"431"), got
        except OSError:
            pass  # cut in the middle of it
        for garbage in (b"\0\1\2\3\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                        b"GET " + b"/" * 100000 + b" HTTP/1.1\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"):
            s = stack.socket()
            try:
                s.sendall(garbage)
                s.settimeout(0.2)
                s.recv(1000)
            except OSError:
                pass
            s.close()
        status, answer = stack.post("/v1/chat/completions", chat())
        assert status == 200 and answer["choices"][0]["message"]["content"] == ANSWER


def test_large_questions_and_answers():
    with Stack(1, gateway=["--timeout", 1]) as stack:
        # Answers that come to more than a MiB at once are not taken for a client that does not read.
        body = {"model": "gptoss-tiny-mxfp4", "input": QUESTION, "stream": True, "max_output_tokens": 400, "ignore_eos": True,
                "temperature": 0, "include": ["message.output_text.logprobs"], "top_logprobs": 20}
        kinds = [event["type"] for event in stack.events("/v1/responses", body) if not isinstance(event, str)]
        assert kinds[-1] in ("response.completed", "response.incomplete"), kinds[-3:]
        # Many results of calls are looked up at once.
        call = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
        many = {"messages": [call] + [{"role": "tool", "tool_call_id": "a", "content": ""}] * 60000}
        begin = time.monotonic()
        status, answer = stack.post("/v1/chat/completions", many)
        assert status == 400 and time.monotonic() - begin < 5, (status, answer, time.monotonic() - begin)
        # Copies of a large question are bounded together.
        status, answer = stack.post("/v1/chat/completions", chat("x " * 1000000, n=128))
        assert status == 413 and answer["error"]["param"] == "n", answer
        # A coordinator that is gone is asked nothing: nothing piles up for it.
        before = stack.memory()
        stack.coordinator.stop()
        for _ in range(6):
            status, answer = stack.post("/v1/chat/completions", chat("x " * 1900000))
            assert status == 503, answer
        grown = stack.memory() - before
        assert grown < 14 << 20, f"{grown >> 20} MiB more"


def test_a_full_queue_says_when_to_come_again():
    with Stack(1, coordinator=["--sequences", 1, "--max-queue", 1]) as stack:
        body = {**LONG, "max_tokens": 4000, "stream": True}
        running = [stack.request("POST", "/v1/completions", body) for _ in range(2)]
        end = time.monotonic() + 10
        while time.monotonic() < end:
            response = stack.request("POST", "/v1/completions", body)
            if response.status == 429:
                break
            running.append(response)
        assert response.status == 429, response.status
        error = json.loads(response.read())["error"]
        assert error["code"] == "rate_limit_exceeded" and int(response.headers["Retry-After"]) >= 1, error
        for r in running:  # they hang up: what they asked for ends
            r.connection.sock and r.connection.sock.shutdown(socket.SHUT_RDWR)
            r.close()
            r.connection.close()
        end = time.monotonic() + 15
        while True:
            status, answer = stack.post("/v1/chat/completions", chat())
            if status == 200:
                break
            assert status == 429 and time.monotonic() < end, (status, answer)
            time.sleep(0.1)


def test_a_pause_sends_comments_and_no_coordinator_is_told():
    with Stack(None, gateway=["--timeout", 1]) as stack:
        assert stack.get("/readyz").status == 503
        response = stack.request("POST", "/v1/chat/completions", chat())
        assert response.status == 503 and "Retry-After" in response.headers, response.status
        assert json.loads(response.read())["error"]["code"] == "no_coordinator"
        assert "gptoss_gateway_coordinator_up 0" in stack.get("/metrics").text
        stack.ranks = 0
        stack.start_coordinator()  # one without ranks
        time.sleep(0.5)
        begin = time.monotonic()
        for event in stack.events("/v1/chat/completions", chat(stream=True), timeout=20):
            if isinstance(event, str):
                break
        assert 2 < time.monotonic() - begin < 8, "a comment every 5 seconds"


def pids(stack):
    found = stack.workers()
    assert found, "no ranks"
    return found


def test_a_rank_dies_in_the_middle_of_a_stream():
    with Stack(2) as stack:
        body = {**LONG, "max_tokens": 400}
        want = streamed(stack, "/v1/completions", body)
        text, killed = "", 0
        for event in stack.events("/v1/completions", {**body, "stream": True}):
            if isinstance(event, str):
                continue
            text += event["choices"][0]["text"]
            if not killed and len(text) > 200:
                os.kill(pids(stack)[1], signal.SIGKILL)
                killed += 1
        assert killed and text == want[0], (killed, text, want[0])


def test_a_stream_outlives_the_coordinator():
    with Stack(1, coordinator=["--journal", "PLACE/journal"]) as stack:
        body = {**LONG, "max_tokens": 400}
        want = streamed(stack, "/v1/completions", body)
        text, killed = "", False
        for event in stack.events("/v1/completions", {**body, "stream": True}):
            if isinstance(event, str):
                continue
            text += event["choices"][0]["text"]
            if not killed and len(text) > 200:
                stack.coordinator.stop(signal.SIGKILL)
                stack.start_coordinator()
                killed = True
        assert killed and text == want[0], (killed, text, want[0])


def test_a_signal_lets_streams_end_and_takes_no_more():
    with Stack(1) as stack:
        want = streamed(stack, "/v1/completions", LONG)
        text, stopped = "", False
        for event in stack.events("/v1/completions", {**LONG, "stream": True}):
            text += event["choices"][0]["text"]
            if not stopped and len(text) > 100:
                stack.gateway.process.send_signal(signal.SIGTERM)
                stopped = True
        assert text == want[0]
        assert stack.gateway.process.wait(10) == 0
        try:
            stack.get("/livez")
            raise AssertionError("it still listens")
        except ConnectionRefusedError:
            pass


# ── a crowd ──────────────────────────────────────────────────────────────────────────────────────

async def one(port, i, kind, tokens, want):
    """A stream; kind: quick, slow (reads a little at a time), gone (hangs up)."""
    body = json.dumps({"prompt": f"In the beginning {i % 7}", "temperature": 0, "max_tokens": tokens, "stream": True,
                       "ignore_eos": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096 if kind == "slow" else 65536)
    if kind == "slow":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.write((f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
                  f"Content-Length: {len(body)}\r\n\r\n").encode() + body)
    data = b""
    while True:
        got = await reader.read(256 if kind == "slow" else 65536)
        if not got:
            break
        data += got
        if kind == "slow":
            await asyncio.sleep(0.02)
        if kind == "gone" and len(data) > 2000:
            writer.transport.abort()
            return True
    writer.close()
    text, body_ = "", b""
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    while rest:  # chunks
        size, _, rest = rest.partition(b"\r\n")
        body_ += rest[:int(size, 16)]
        rest = rest[int(size, 16) + 2:]
    for line in body_.split(b"\n"):
        if line.startswith(b"data: {"):
            text += json.loads(line[6:])["choices"][0]["text"]
    assert b"data: [DONE]" in body_, (i, kind, body_[-200:])
    return text == want[i % 7]


LOOKER = """
import http.client, json, select, sys, time
lives = []
while not select.select([sys.stdin], [], [], 0.1)[0]:
    begin = time.monotonic()
    c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    c.request("GET", "/livez")
    assert c.getresponse().read()
    c.close()
    lives.append(time.monotonic() - begin)
print(json.dumps(lives))
"""


def test_a_crowd_of_500_with_slow_and_vanishing_clients():
    tokens = 20
    with Stack(1, coordinator=["--max-queue", 1000]) as stack:
        want = [streamed(stack, "/v1/completions", {"prompt": f"In the beginning {i}", "temperature": 0,
                                                    "max_tokens": tokens, "ignore_eos": True})[0] for i in range(7)]
        kinds = ["slow" if i % 10 == 3 else "gone" if i % 10 == 7 else "quick" for i in range(500)]

        async def crowd():
            return await asyncio.gather(*(one(stack.port, i, kind, tokens, want) for i, kind in enumerate(kinds)))
        # Somebody else, in a process of its own: 500 streams keep this one busy.
        other = subprocess.Popen([sys.executable, "-c", LOOKER, str(stack.port)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
        begin = time.monotonic()
        results = asyncio.run(asyncio.wait_for(crowd(), 120))
        lives = json.loads(other.communicate()[0])
        assert all(results), f"{results.count(False)} answers are wrong"
        memory = stack.memory()
        lives.sort()
        print(f"        500 streams in {time.monotonic() - begin:.1f} s; {memory / 2**20:.0f} MiB; "
              f"/livez: {lives[len(lives) // 2] * 1e3:.1f} ms, at most {lives[-1] * 1e3:.0f} ms")
        assert memory < 128 << 20, memory
        assert lives[len(lives) // 2] < 0.1, lives
        end = time.monotonic() + 10
        while "gptoss_gateway_connections 1\n" not in stack.get("/metrics").text:
            assert time.monotonic() < end, stack.get("/metrics").text
            time.sleep(0.1)


def test_tools_are_called_and_their_results_read():
    with Stack(1) as stack:
        body = chat("What is the weather in Paris?", tools=tools())
        for more in ({}, {"tool_choice": "required"},
                     {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}):
            _, answer = stack.post("/v1/chat/completions", {**body, **more})
            choice = answer["choices"][0]
            call = choice["message"]["tool_calls"][0]
            assert choice["finish_reason"] == "tool_calls" and call["function"]["name"] == "get_weather", choice
            assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}, call
        assert "tool_calls" not in stack.post("/v1/chat/completions", {**body, "tool_choice": "none"})[1]["choices"][0]["message"]
        messages = body["messages"] + [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "21 C"}]
        status, answer = stack.post("/v1/chat/completions", {**body, "messages": messages})
        assert status == 200 and answer["choices"][0]["finish_reason"], answer


def test_the_address_and_the_keys_are_checked_at_the_start():
    with tempfile.TemporaryDirectory() as place:
        bad = os.path.join(place, "bad")
        with open(bad, "w") as f:
            f.write("short\n")
        os.chmod(bad, 0o600)
        readable = os.path.join(place, "readable")
        with open(readable, "w") as f:
            f.write("long-enough-key\n")
        os.chmod(readable, 0o644)
        for options, words in ((["--host", "0.0.0.0"], "--api-key-file"), (["--api-key-file", bad], "bad:1"),
                               (["--api-key-file", readable], "chmod 600"), (["--api-key-file", place + "/none"], "cannot read"),
                               (["--coordinator", "nonsense"], "nonsense"), (["--port", "x"], "--port"), (["word"], "word")):
            done = subprocess.run([os.path.join(BIN, "gptoss-gateway"), "--port", "0", *options], capture_output=True,
                                  text=True, timeout=10, env=environment())
            assert done.returncode == 2 and words in done.stderr, (options, done)


if __name__ == "__main__":
    run_tests(sys.modules[__name__])
