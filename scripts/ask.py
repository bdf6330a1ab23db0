#!/usr/bin/python3
"""Asks a gptoss coordinator one question: a whole client, written from proto/gptoss.proto alone.

    scripts/ask.py "What is the capital of Greece?"
    scripts/ask.py --raw "In the beginning" --max-tokens 32

Debian packages: python3-zmq, python3-protobuf, protobuf-compiler.
"""
import argparse, importlib, os, pathlib, secrets, subprocess, sys, tempfile
import zmq


def load_schema():
    """Compiles the schema with protoc and imports what comes of it."""
    folder = pathlib.Path(__file__).resolve().parent.parent / "proto"
    with tempfile.TemporaryDirectory() as made:
        subprocess.run(["protoc", f"-I{folder}", f"--python_out={made}", "gptoss.proto"], check=True)
        sys.path.insert(0, made)
        return importlib.import_module("gptoss_pb2")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("prompt")
    options.add_argument("--connect", default=os.environ.get("GPTOSS_CONNECT", "tcp://127.0.0.1:5555"))
    options.add_argument("--key", default=os.environ.get("GPTOSS_KEY"),
                         help="the keys to show to a coordinator that runs with --keys (gptoss-coordinator keygen)")
    options.add_argument("--raw", action="store_true", help="complete the prompt as plain text")
    options.add_argument("--max-tokens", type=int, default=0)
    options.add_argument("--temperature", type=float)
    options.add_argument("--timeout", type=float, default=15, help="seconds of silence to bear")
    o = options.parse_args()
    pb = load_schema()

    ask = pb.ClientMessage()
    ask.generate.request_id = secrets.token_hex(8).encode()
    ask.generate.max_tokens = o.max_tokens
    if o.temperature is not None:
        ask.generate.sampling.temperature = o.temperature
    prompt = os.fsencode(o.prompt)
    if o.raw:
        ask.generate.text = prompt
    else:
        ask.generate.chat.messages.add(role=pb.Message.USER, content=prompt)

    socket = zmq.Context().socket(zmq.DEALER)  # one frame is one message
    socket.linger = 200
    if o.key:
        with open(o.key) as f:
            keys = dict(line.split()[:2] for line in f if line.strip() and not line.startswith("#"))
        socket.curve_publickey = keys["public"].encode()
        socket.curve_secretkey = keys["secret"].encode()
        socket.curve_serverkey = keys["server"].encode()
    socket.connect(o.connect)
    socket.send(ask.SerializeToString())
    while socket.poll(o.timeout * 1000):
        answer = pb.ServerMessage.FromString(socket.recv())
        kind = answer.WhichOneof("body")
        body = getattr(answer, kind)
        if kind == "refused":
            sys.exit(f"refused: {body.text} ({pb.Code.Name(body.code)})")
        pieces = [p for token in body.tokens for p in token.pieces] if kind == "output" else []
        if kind == "finished":
            pieces = body.pieces
        for piece in pieces:
            if piece.channel in (pb.Piece.RAW, pb.Piece.FINAL) or piece.recipient:
                sys.stdout.buffer.write(piece.text)
        sys.stdout.flush()
        if kind == "finished":
            print()
            failed = body.reason in (pb.Finished.ERROR, pb.Finished.CANCELLED)
            sys.exit(f"failed: {body.text or 'cancelled'}" if failed else 0)
    sys.exit(f"no coordinator answers at {o.connect}")


if __name__ == "__main__":
    main()
