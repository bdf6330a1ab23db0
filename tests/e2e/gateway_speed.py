#!/usr/bin/env python3
"""gateway_speed.py [QUESTIONS]: what the gateway adds to the time to the first token, and the processor time
that it takes for a streamed token. Compared with a client of the coordinator itself, both on this host, asked
in turns. Needs a quiet machine."""
import socket
import statistics
import sys
import time

import gateway_harness as gateway
import harness

PROMPT = "In the beginning God created the heaven"


def direct(client, max_tokens):
    """Seconds until the first token, from the coordinator itself."""
    g = harness.pb.Generate(request_id=f"speed-{time.monotonic_ns()}".encode(), text=PROMPT.encode(),
                            max_tokens=max_tokens)
    g.sampling.temperature = 0
    begin = time.perf_counter()
    client.send(harness.pb.ClientMessage(generate=g))
    first = None
    while True:
        m = client.receive()
        if m.WhichOneof("body") == "output" and first is None:
            first = time.perf_counter() - begin
        if m.WhichOneof("body") == "finished":
            return first


def request(path, body):
    import json
    body = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def through(connection, message):
    """Seconds until the first token, through the gateway, on a connection that stays."""
    begin = time.perf_counter()
    connection.sendall(message)
    first, got = None, b""
    while not got.endswith(b"0\r\n\r\n"):
        got += connection.recv(65536)
        if first is None and b'"text":"' in got:
            first = time.perf_counter() - begin
    return first


def streams(stack, n, tokens):
    """Processor time of the gateway for a token, with n streams at a time."""
    message = request("/v1/completions", {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True,
                                          "ignore_eos": True})
    connections = [stack.socket() for _ in range(n)]
    before = stack.cpu_seconds()
    begin = time.perf_counter()
    for c in connections:
        c.sendall(message)
    import selectors
    selector = selectors.DefaultSelector()
    chunks = 0
    for c in connections:
        selector.register(c, selectors.EVENT_READ, [b""])
    left = n
    while left:
        for key, _ in selector.select(20):
            data = key.fileobj.recv(1 << 20)
            chunks += data.count(b"data: {")
            key.data[0] = (key.data[0] + data)[-8:]
            if key.data[0].endswith(b"0\r\n\r\n"):
                selector.unregister(key.fileobj)
                left -= 1
    seconds = time.perf_counter() - begin
    used = stack.cpu_seconds() - before
    for c in connections:
        c.close()
    return used / (n * tokens), n * tokens / seconds, chunks


def main():
    questions = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with gateway.Stack(1) as stack, harness.Client(stack.endpoint) as client:
        message = request("/v1/completions", {"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "stream": True})
        connection = stack.socket()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = [], []
        for i in range(questions + 20):
            pair = direct(client, 1), through(connection, message)
            if i >= 20:
                times[0].append(pair[0])
                times[1].append(pair[1])
        a, b = (statistics.median(t) * 1e3 for t in times)
        print(f"first token: {a:.3f} ms from the coordinator, {b:.3f} ms through the gateway: {b - a:+.3f} ms "
              f"(medians of {questions}; at most 1 ms is asked)")
        differences = sorted(y - x for x, y in zip(*times))
        print(f"             differences: 10 % {differences[questions // 10] * 1e3:+.3f}, "
              f"90 % {differences[questions * 9 // 10] * 1e3:+.3f} ms")
        idle = stack.cpu_seconds()
        time.sleep(2)
        idle = (stack.cpu_seconds() - idle) / 2
        for n, tokens in ((1, 400), (16, 200), (100, 200)):
            each, rate, chunks = streams(stack, n, tokens)
            print(f"{n:4} streams: {each * 1e6:.1f} µs of processor time a token, at {rate:.0f} tokens/s, {chunks} "
                  f"events (at most 20 µs is asked)")
        print(f"idle: {idle * 100:.2f} % of a core; memory {stack.memory() / 2**20:.1f} MiB")


main()
