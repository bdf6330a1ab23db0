#!/usr/bin/env python3
"""corpus.py FOLDER: small GGUF files, sound and nearly so, from which fuzzing begins."""
import os
import struct
import sys

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
BLOCK = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
         11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2), 39: (32, 17)}


def string(text):
    text = text.encode()
    return struct.pack("<Q", len(text)) + text


def key(name, kind, value):
    if kind == STRING:
        return string(name) + struct.pack("<I", STRING) + string(value)
    if kind == ARRAY:
        element, items = value
        body = b"".join(string(v) if element == STRING else struct.pack({I32: "<i", F32: "<f", BOOL: "<?"}[element], v)
                        for v in items)
        return string(name) + struct.pack("<IIQ", ARRAY, element, len(items)) + body
    return string(name) + struct.pack("<I", kind) + struct.pack({U32: "<I", I32: "<i", F32: "<f", U64: "<Q"}[kind], value)


def file(keys, tensors, alignment=32, version=3):
    infos, data = b"", b""
    for name, type_, ne in tensors:
        data += bytes(-len(data) % alignment)
        infos += string(name) + struct.pack("<I", len(ne)) + struct.pack(f"<{len(ne)}Q", *ne)
        infos += struct.pack("<IQ", type_, len(data))
        size = ne[0] // BLOCK[type_][0] * BLOCK[type_][1]
        for n in ne[1:]:
            size *= n
        data += bytes(size)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + infos
    return head + bytes(-len(head) % alignment) + data


def model_keys(hidden=32, heads=2, kv=1, dim=4, ffn=32, experts=2):
    g = "gpt-oss."
    return [key("general.architecture", STRING, "gpt-oss"), key(g + "block_count", U32, 1),
            key(g + "context_length", U32, 64), key(g + "embedding_length", U32, hidden),
            key(g + "feed_forward_length", U32, ffn), key(g + "attention.head_count", U32, heads),
            key(g + "attention.head_count_kv", U32, kv), key(g + "attention.key_length", U32, dim),
            key(g + "attention.sliding_window", U32, 4), key(g + "attention.layer_norm_rms_epsilon", F32, 1e-5),
            key(g + "rope.freq_base", F32, 150000), key(g + "expert_count", U32, experts),
            key(g + "expert_used_count", U32, 1), key(g + "rope.scaling.factor", F32, 4)]


def model_tensors(matrix=8, experts=39, fused=False, hidden=32, heads=2, kv=1, dim=4, ffn=32, n=2, vocabulary=3):
    q, k = heads * dim, kv * dim
    three = [("attn_qkv", q + 2 * k)] if fused else [("attn_q", q), ("attn_k", k), ("attn_v", k)]
    layer = [("attn_norm.weight", 0, (hidden,))]
    for name, rows in three:
        layer += [(name + ".weight", matrix, (hidden, rows)), (name + ".bias", 0, (rows,))]
    layer += [("attn_output.weight", 1, (q, hidden)), ("attn_output.bias", 0, (hidden,)),
              ("attn_sinks.weight", 0, (heads,)), ("post_attention_norm.weight", 0, (hidden,)),
              ("ffn_gate_inp.weight", 0, (hidden, n)), ("ffn_gate_inp.bias", 0, (n,))]
    for name, i, o in (("gate", hidden, ffn), ("up", hidden, ffn), ("down", ffn, hidden)):
        layer += [(f"ffn_{name}_exps.weight", experts, (i, o, n)), (f"ffn_{name}_exps.bias", 0, (o, n))]
    return ([("token_embd.weight", matrix, (hidden, vocabulary)), ("output_norm.weight", 0, (hidden,))]
            + [("blk.0." + name, type_, ne) for name, type_, ne in layer])


def vocabulary():
    return [key("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "ab"])),
            key("tokenizer.ggml.token_type", ARRAY, (I32, [1, 1, 1])),
            key("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"])), key("tokenizer.ggml.eos_token_id", U32, 2)]


def split(no, total, keys=()):
    return [key("split.no", U32, no), key("split.count", U32, 2), key("split.tensors.count", I32, total), *keys]


def padded(part):
    return part + bytes(-len(part) % 32)


def main(folder):
    os.makedirs(folder, exist_ok=True)
    tensors = model_tensors()
    files = {
        "model": file(model_keys() + vocabulary(), tensors),
        "fused": file(model_keys(), model_tensors(matrix=6, experts=2, fused=True)),
        "mixed": file(model_keys(), model_tensors(matrix=30, experts=7)),
        "aligned": file(model_keys() + [key("general.alignment", U32, 64)], model_tensors(matrix=3), 64, 2),
        "k-quants": file([], [(f"t{t}", t, (256,)) for t in (10, 11, 12, 13, 14)]),
        "pattern": file(model_keys() + [key("gpt-oss.attention.sliding_window_pattern", ARRAY, (BOOL, [True]))], tensors),
        "keys": file([key("a", U64, 1 << 63), key("f", ARRAY, (F32, [0.5, 1e30])), *vocabulary()], []),
        "split": padded(file(split(0, len(tensors), model_keys()), tensors[:9])) + file(split(1, len(tensors)), tensors[9:]),
    }
    for name, content in files.items():
        with open(os.path.join(folder, name + ".gguf"), "wb") as out:
            out.write(content)


main(sys.argv[1])
