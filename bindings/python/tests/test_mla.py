"""The package from Python: it gives the numbers of the goldens and of a numpy MLA, and answers what
does not fit with an exception."""

import ctypes
import gc
import json
import os
import pathlib
import signal
import struct
import sys
import threading

import mla
import numpy as np
import pytest

MODELS = pathlib.Path(os.environ["MLA_MODELS"])
MODEL = MODELS / "tiny-shakespeare-v3"


def read_safetensors(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    types = {"F32": np.float32, "I32": np.int32, "I64": np.int64, "BF16": np.uint16}
    tensors = {}
    for name, tensor in header.items():
        if name == "__metadata__" or tensor["dtype"] not in types:
            continue
        begin, end = tensor["data_offsets"]
        values = np.frombuffer(data[8 + size + begin : 8 + size + end], types[tensor["dtype"]])
        tensors[name] = values.reshape(tensor["shape"])
    return tensors


@pytest.fixture(scope="session")
def goldens():
    return read_safetensors(MODEL / "goldens.safetensors")


@pytest.fixture(scope="session")
def model():
    return mla.Model(str(MODEL), precision="exact")


# ------------------------------------------------------------------------------------------ models


def test_model_says_what_it_is(model):
    assert (model.vocab_size, model.hidden_size, model.num_hidden_layers) == (1024, 192, 4)
    assert model.max_position_embeddings == 256
    assert model.model_type == "deepseek_v3"
    assert (model.bos_token_id, model.eos_token_ids) == (0, [1])
    assert model.threads == 1
    assert model.tokenizer.vocab_size == 1024


def test_forward_gives_the_logits_of_the_goldens(model, goldens):
    for prompt in ("short", "medium", "long"):
        tokens = goldens[f"{prompt}.input_ids"]
        state = model.state()
        logits = model.forward(tokens, state)
        assert logits.shape == (len(tokens), 1024) and logits.dtype == np.float32
        # Of the long prompt there are those of the last tokens.
        expected = goldens.get(f"{prompt}.logits", goldens.get("long.logits_last16"))
        # The bound is the library's for float32.
        assert np.abs(logits[-len(expected) :] - expected).max() < 2e-4
        assert len(state) == len(tokens)


def test_last_logits_and_batches_are_those_of_each_text(model, goldens):
    texts = [goldens[f"{prompt}.input_ids"] for prompt in ("short", "medium")]
    alone = [model.forward(text, model.state(), last=2) for text in texts]
    states = [model.state(), model.state()]
    together = model.forward_batch([texts[0].tolist(), texts[1]], states, last=2)
    for a, b in zip(alone, together):
        assert a.shape == (2, 1024)
        np.testing.assert_array_equal(a, b)
    # Logits are alive without the model and the other texts.
    copy = together[0].copy()
    kept = together[0]
    del together
    gc.collect()
    np.testing.assert_array_equal(kept, copy)


def test_generate_writes_the_goldens(model, goldens):
    strings = json.loads((MODEL / "goldens.json").read_text())
    for prompt in ("short", "medium", "long"):
        tokens = goldens[f"{prompt}.input_ids"]
        expected = goldens[f"{prompt}.greedy"].tolist()
        drafts = {"speculative": True, "draft_tokens": 3, "lookup": 4}
        for options in ({}, {"speculative": True}, drafts, {"lookup": 2}, {"chunk_tokens": 3}):
            assert list(model.generate_tokens(tokens, max_tokens=64, **options)) == expected
        text = find(strings, prompt)
        generation = model.generate(text["text"], max_tokens=64)
        assert generation.stop_reason is None
        assert "".join(generation) == text["continuation"]
        assert generation.tokens == expected
        assert generation.stop_reason == "max_tokens"
        assert generation.generated_tokens == 64


def find(tree, key):
    """The object with a text and a continuation under `key`, wherever it is."""
    if isinstance(tree, dict):
        if isinstance(tree.get(key), dict) and "continuation" in tree[key]:
            return tree[key]
        for value in tree.values():
            if (found := find(value, key)) is not None:
                return found
    return None


def test_generate_samples_by_seed(model):
    def sample(seed):
        options = dict(temperature=0.8, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.1)
        return "".join(model.generate("ROMEO:", max_tokens=40, seed=seed, **options))

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)


def test_a_state_goes_on_is_cut_back_and_saved(model, goldens, tmp_path):
    tokens = goldens["medium.input_ids"]
    state = model.state("bf16")
    model.forward(tokens, state)
    assert state.format == "bf16"
    assert state.bytes_per_token > 0
    assert state.bytes_used > 0
    state.truncate(5)
    path = str(tmp_path / "state")
    state.save(path, "label")
    other = model.state("bf16")
    with pytest.raises(RuntimeError, match="label"):
        other.restore(path)
    other.restore(path, "label")
    assert len(other) == 5
    a, b = (model.forward(tokens[5:], s, last=1) for s in (state, other))
    np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="truncate"):
        state.truncate(10_000)
    with pytest.raises(ValueError, match="257"):
        state.reserve(257)
    state.reserve(256)


def test_forks_go_on_by_themselves_and_tokens_can_be_evicted(model):
    state = model.state()
    first = list(model.generate_tokens("ROMEO:", state=state, max_tokens=5))
    forks = [state.fork(), state.fork(4)]
    assert [len(fork) for fork in forks] == [len(state), 4]
    goes_on = [
        list(model.generate_tokens([first[-1]], state=s, max_tokens=6)) for s in (state, forks[0])
    ]
    assert goes_on[0] == goes_on[1]
    size = len(state)
    state.evict([1, 3])
    assert (len(state), len(forks[1])) == (size - 2, 4)
    with pytest.raises(ValueError):
        state.evict([size])
    with pytest.raises(ValueError, match="fork"):
        state.fork(1000)


def test_a_generation_can_be_left_and_its_state_goes_on(model):
    expected = list(model.generate_tokens("ROMEO:", max_tokens=12))
    state = model.state()
    with model.generate_tokens("ROMEO:", state=state, max_tokens=100) as generation:
        first = [next(generation) for _ in range(5)]
        with pytest.raises(ValueError, match="state is in use"):
            state.truncate(0)
        with pytest.raises(ValueError, match="state is in use"):
            model.generate("x", state=state)
    assert first == expected[:5]
    assert list(generation) == []
    # All but the last token has gone through the model.
    assert list(model.generate_tokens([first[-1]], state=state, max_tokens=7)) == expected[5:]
    generation = model.generate("ROMEO:", state=model.state())
    next(generation)
    del generation  # frees the state


def test_context_and_end_of_text(model):
    generation = model.generate_tokens([0] + [5] * 249, max_tokens=1000)
    assert len(list(generation)) == 6
    assert generation.stop_reason == "context_full"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.forward([1, 1024], m.state()), "not in the vocabulary"),
        (lambda m: m.forward([1, -1], m.state()), "which is no token"),
        (lambda m: m.forward([1.5], m.state()), "must be integers"),
        (lambda m: m.forward([[1]], m.state()), "1 dimension"),
        (lambda m: m.forward([1], m.state(), last=2), "last must be from 0 to 1"),
        (lambda m: m.forward([1], None), "None"),
        (lambda m: m.forward([1] * 300, m.state()), "max_position_embeddings"),
        (lambda m: m.forward([2**40], m.state()), "which is no token"),
        (lambda m: m.forward_batch([[1]], []), "1 texts, but 0 states"),
        (lambda m: m.state("f8"), "cache_format must be one of f32, bf16"),
        (lambda m: m.generate([]), "prompt is empty"),
        (lambda m: m.generate("x", temperature=-1), "temperature"),
        (lambda m: m.generate("x", max_tokens=-1), "max_tokens"),
        (lambda m: m.generate([5] * 300), "max_position_embeddings"),
        (lambda m: m.tokenizer.decode([4096]), "4096"),
        (lambda m: mla.Model(str(MODEL), precision="half"), "precision must be fast or exact"),
        (lambda m: mla.Model(str(MODEL), threads=-1), "threads"),
    ],
)
def test_what_does_not_fit_is_a_value_error(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_files_that_are_wrong_are_runtime_errors(tmp_path):
    with pytest.raises(RuntimeError, match="model.safetensors"):
        mla.Model(str(tmp_path))
    with pytest.raises(RuntimeError, match="tokenizer.json"):
        mla.Tokenizer(str(tmp_path))
    with pytest.raises(TypeError):
        mla.Model(5)


def test_a_state_twice_or_of_another_model_is_refused(model):
    state = model.state()
    with pytest.raises(ValueError, match="in use"):
        model.forward_batch([[1], [2]], [state, state])
    other = mla.Model(str(MODEL))
    with pytest.raises(ValueError, match="another model"):
        other.forward([1], state)
    with pytest.raises(ValueError, match="another model"):
        other.generate("x", state=state)
    assert len(model.forward([1], state)) == 1  # it is free again


def test_threads_share_a_model(model, goldens):
    tokens = goldens["short.input_ids"]
    expected = goldens["short.greedy"].tolist()
    results = [None] * 4

    def work(i):
        results[i] = list(model.generate_tokens(tokens, max_tokens=64))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_ctrl_c_ends_a_generation_and_nothing_is_lost(model):
    state = model.state()
    generation = model.generate_tokens("ROMEO:", state=state, max_tokens=100)
    first = next(generation)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        for _ in generation:
            pass
    generation.close()
    assert len(state) >= 3
    tokens = [first] + list(model.generate_tokens([first], state=truncated(state), max_tokens=3))
    assert tokens == list(model.generate_tokens("ROMEO:", max_tokens=4))


def truncated(state):
    state.truncate(len(mla.Tokenizer(str(MODEL)).encode("ROMEO:")))
    return state


def test_tokenizer(model):
    tokenizer = mla.Tokenizer(str(MODEL))
    text = "ROMEO:\nétude 你好"
    tokens = tokenizer.encode(text)
    assert tokens[0] == tokenizer.bos_id == 0
    assert tokenizer.encode(text, add_bos=False) == tokens[1:]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode(np.array(tokens)) == text
    assert tokenizer.token_id("Ġthe") == tokenizer.encode(" the", add_bos=False)[0]
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.eos_ids == [1]


# --------------------------------------------------------------------------------------- attention


def small_config():
    return mla.AttentionConfig(
        hidden_size=48, num_attention_heads=3, q_lora_rank=20, kv_lora_rank=36,
        qk_nope_head_dim=12, qk_rope_head_dim=10, v_head_dim=14,
    )


def random_weights(config, seed=1, dtype=np.float32):
    random = np.random.default_rng(seed)
    heads = config.num_attention_heads
    head = config.qk_nope_head_dim + config.qk_rope_head_dim

    def matrix(rows, cols):
        return (random.standard_normal((rows, cols)) / np.sqrt(cols)).astype(dtype)

    def norm(n):
        return (1 + 0.3 * random.standard_normal(n)).astype(dtype)

    return {
        "q_a_proj": matrix(config.q_lora_rank, config.hidden_size),
        "q_a_layernorm": norm(config.q_lora_rank),
        "q_b_proj": matrix(heads * head, config.q_lora_rank),
        "kv_a_proj_with_mqa": matrix(
            config.kv_lora_rank + config.qk_rope_head_dim, config.hidden_size
        ),
        "kv_a_layernorm": norm(config.kv_lora_rank),
        "kv_b_proj": matrix(
            heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank
        ),
        "o_proj": matrix(config.hidden_size, heads * config.v_head_dim),
    }


def rms_norm(x, weight, eps=1e-6):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rotate(x, theta):
    """Pairs (2i, 2i + 1) of x [tokens, ..., rope] by their token's position."""
    rope = x.shape[-1]
    angles = np.outer(np.arange(len(x)), theta ** (-np.arange(0, rope, 2) / rope))
    angles = angles.reshape(len(x), *([1] * (x.ndim - 2)), rope // 2)
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = a * np.cos(angles) - b * np.sin(angles)
    out[..., 1::2] = a * np.sin(angles) + b * np.cos(angles)
    return out


def numpy_mla(config, weights, x):
    """Multi-head Latent Attention as the paper writes it, in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x = x.astype(np.float64)
    tokens, heads = len(x), config.num_attention_heads
    nope, rope, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    q = rms_norm(x @ w["q_a_proj"].T, w["q_a_layernorm"]) @ w["q_b_proj"].T
    q = q.reshape(tokens, heads, nope + rope)
    compressed = x @ w["kv_a_proj_with_mqa"].T
    latent = rms_norm(compressed[:, : config.kv_lora_rank], w["kv_a_layernorm"])
    k_rope = rotate(compressed[:, config.kv_lora_rank :], config.rope_theta)
    q_rope = rotate(q[..., nope:], config.rope_theta)
    kv = (latent @ w["kv_b_proj"].T).reshape(tokens, heads, nope + v)
    scores = np.einsum("thd,shd->hts", q[..., :nope], kv[..., :nope])
    scores += np.einsum("thd,sd->hts", q_rope, k_rope)
    scores /= np.sqrt(nope + rope)
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    out = np.einsum("hts,shd->thd", scores, kv[..., nope:])
    return out.reshape(tokens, heads * v) @ w["o_proj"].T


@pytest.fixture
def x():
    return np.random.default_rng(5).standard_normal((30, 48)).astype(np.float32)


@pytest.mark.parametrize("mode", ["automatic", "absorbed", "decompressed"])
def test_layer_is_a_numpy_mla(x, mode):
    config = small_config()
    weights = random_weights(config)
    layer = mla.AttentionLayer(config, weights)
    cache = layer.cache("f32")
    # A prompt, then tokens one by one.
    parts = [layer.forward(part, cache, mode=mode) for part in (x[:20], *np.split(x[20:], 10))]
    expected = numpy_mla(config, weights, x)
    # float32 against float64.
    assert np.abs(np.concatenate(parts) - expected).max() < 2e-5 * np.abs(expected).max()
    assert len(cache) == 30
    assert cache.bytes_per_token == 4 * (36 + 10)
    assert cache.bytes_used == 30 * cache.bytes_per_token


def bfloat16_bits(array):
    return (array.view(np.uint32) >> 16).astype(np.uint16)


class Dlpack:
    """An array of another library's, as bfloat16: NumPy has no such type."""

    class Tensor(ctypes.Structure):
        _fields_ = [
            ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32),
            ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8),
            ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
            ("shape", ctypes.POINTER(ctypes.c_int64)),
            ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
            ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
        ]

    def __init__(self, bits, code=4, device=1):
        self.bits = bits
        self.shape = (ctypes.c_int64 * bits.ndim)(*bits.shape)
        self.tensor = self.Tensor(
            bits.ctypes.data, device, 0, bits.ndim, code, 8 * bits.itemsize, 1, self.shape, None, 0
        )

    def __dlpack__(self):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


def test_weights_of_other_types_and_libraries_are_used_as_they_are(x):
    config = small_config()
    rounded = {name: bfloat16_bits(value) for name, value in random_weights(config).items()}
    floats = {
        name: (bits.astype(np.uint32) << 16).view(np.float32) for name, bits in rounded.items()
    }
    expected = numpy_mla(config, floats, x)
    dlpack = {name: Dlpack(bits) for name, bits in rounded.items()}
    pairs = {name: (bits, "bf16") for name, bits in rounded.items()}
    results = []
    for weights in (dlpack, pairs):
        layer = mla.AttentionLayer(config, weights)
        results.append(layer.forward(x, layer.cache("f32")))
        assert np.abs(results[-1] - expected).max() < 2e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(*results)
    half = random_weights(config, dtype=np.float16)
    layer = mla.AttentionLayer(config, half)
    out = layer.forward(x, layer.cache("f32"))
    expected = numpy_mla(config, half, x)
    assert np.abs(out - expected).max() < 2e-5 * np.abs(expected).max()


def test_weights_and_inputs_are_not_copied(x):
    config = small_config()
    weights = random_weights(config)
    # Rows that lie apart, in a larger array.
    wide = np.zeros((config.hidden_size, 100), np.float32)
    wide[:, :42] = weights["o_proj"]
    weights["o_proj"] = wide[:, :42]
    layer = mla.AttentionLayer(config, weights)
    before = layer.forward(x, layer.cache("f32"))
    wide *= 2  # what the layer has is the array itself
    after = layer.forward(x, layer.cache("f32"))
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5, atol=1e-6)
    references = sys.getrefcount(wide)
    del weights
    gc.collect()
    np.testing.assert_array_equal(layer.forward(x, layer.cache("f32")), after)
    assert sys.getrefcount(wide) <= references

    apart = np.zeros((30, 60), np.float32)
    apart[:, 3:51] = x
    out = np.full((30, 50), 7, np.float32)
    result = layer.forward(apart[:, 3:51], layer.cache("f32"), out=out[:, :48])
    np.testing.assert_array_equal(result, after)
    np.testing.assert_array_equal(out[:, :48], after)
    assert (out[:, 48:] == 7).all()


def test_batches_positions_and_padding(x):
    config = small_config()
    layer = mla.AttentionLayer(config, random_weights(config))
    form = {"mode": "absorbed"}  # one form for all: the two round differently
    alone = [layer.forward(part, layer.cache(), **form) for part in (x[:7], x[7:])]
    caches = [layer.cache(), layer.cache()]
    np.testing.assert_array_equal(
        layer.forward_batch(x, caches, [7, 23], **form), np.concatenate(alone)
    )
    mask = [True] * 30
    mask[4] = False
    cache = layer.cache()
    out = layer.forward(x, cache, attention_mask=mask)
    assert len(cache) == 29 and (out[4] == 0).all()
    ids = [i for i in range(31) if i != 4]
    skipping = layer.forward(x, layer.cache(), position_ids=ids, **form)
    np.testing.assert_array_equal(skipping[:4], alone[0][:4])


def test_a_layer_of_a_checkpoint(x, tmp_path):
    layer = mla.AttentionLayer.load(str(MODEL), 2)
    assert layer.config.hidden_size == 192
    hidden = np.random.default_rng(2).standard_normal((9, 192)).astype(np.float32)
    cache = layer.cache("int8")
    layer.forward(hidden, cache)
    path = str(tmp_path / "cache")
    cache.truncate(4)
    cache.save(path)
    other = layer.cache("int8")
    other.restore(path)
    assert len(other) == 4 and other.format == "int8"
    a, b = (layer.forward(hidden[4:], c) for c in (cache, other))
    np.testing.assert_array_equal(a, b)
    with pytest.raises(RuntimeError, match="model.layers.77.self_attn"):
        mla.AttentionLayer.load(str(MODEL), 77)


def changed(**change):
    return {**random_weights(small_config()), **change}


@pytest.mark.parametrize(
    "weights, message",
    [
        (changed(z_proj=np.zeros((2, 2), np.float32)), "there is no weight z_proj"),
        (changed(o_proj=np.zeros((48, 41), np.float32)), "o_proj must have shape"),
        (changed(o_proj=np.zeros((48, 42))), "o_proj must be float32, float16 or bfloat16"),
        (changed(o_proj=np.zeros((48, 42), ">f4")), "byte order"),
        (changed(o_proj=np.zeros((48, 42), np.float32, order="F")), "contiguous along its last"),
        (changed(o_proj=np.zeros((48, 84), np.float32)[:, ::2]), "contiguous along its last"),
        (changed(o_proj=np.zeros((48, 42), np.float32)[::-1]), "42 elements -42 apart"),
        (changed(o_proj=np.zeros((1, 48, 42), np.float32)), "1 or 2 dimensions"),
        (changed(o_proj=[[1.0]]), "must be a NumPy array or have __dlpack__"),
        (changed(o_proj=(np.zeros((48, 42), np.uint16), "f8")), "pair of a uint16 array"),
        (changed(o_proj=Dlpack(np.zeros((48, 42), np.uint16), device=2)), "device of type 2"),
        (changed(o_proj=Dlpack(np.zeros((48, 42), np.uint16), code=0)), "DLPack's type 0"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        mla.AttentionLayer(small_config(), weights)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda l, x, c: l.forward(x[:, :40], c), "x must have hidden_size 48"),
        (lambda l, x, c: l.forward(x.astype(np.float64), c), "float32"),
        (lambda l, x, c: l.forward(x[0], c), "2 dimensions"),
        (lambda l, x, c: l.forward(np.asfortranarray(x), c), "contiguous along its last"),
        (lambda l, x, c: l.forward(x, None), "cache 0 is None"),
        (lambda l, x, c: l.forward(x, c, mode="fast"), "mode must be"),
        (lambda l, x, c: l.forward(x, c, position_ids=[1]), "position_ids must have 30"),
        (lambda l, x, c: l.forward(x, c, position_ids=[0] * 30), "position_ids must rise"),
        (lambda l, x, c: l.forward(x, c, attention_mask=[True]), "attention_mask must have 30"),
        (lambda l, x, c: l.forward(x, c, out=read_only(x)), "out is read-only"),
        (lambda l, x, c: l.forward(x, c, out=x[:3].copy()), "must have shape"),
        (lambda l, x, c: l.forward_batch(x, [c], [29]), "lengths must sum to 30"),
        (lambda l, x, c: l.forward_batch(x, [c], [31]), "lengths must sum to 30"),
        (lambda l, x, c: l.forward_batch(x, [c, c], [15, 15]), "cache is in use"),
        (lambda l, x, c: l.cache("f8"), "cache_format"),
        (lambda l, x, c: c.truncate(1), "truncate"),
    ],
)
def test_calls_that_do_not_fit_change_nothing(x, call, message):
    config = small_config()
    layer = mla.AttentionLayer(config, random_weights(config))
    cache = layer.cache()
    with pytest.raises(ValueError, match=message):
        call(layer, x, cache)
    assert len(cache) == 0
    assert len(layer.forward(x, cache)) == 30


def read_only(x):
    out = np.zeros_like(x)
    out.flags.writeable = False
    return out


def test_config_names_the_field_that_is_wrong():
    with pytest.raises(ValueError, match="no field heads"):
        mla.AttentionConfig(heads=5)
    with pytest.raises(ValueError, match="qk_rope_head_dim must be even"):
        mla.AttentionConfig(qk_rope_head_dim=5)
    with pytest.raises(ValueError, match="rope_scaling_type"):
        mla.AttentionConfig(rope_scaling_type="llama3")
    config = mla.AttentionConfig(rope_scaling_type="yarn", rope_factor=40.0, rope_mscale=1.0)
    assert (config.rope_scaling_type, config.rope_factor) == ("yarn", 40.0)


def test_the_stubs_have_what_the_module_has():
    import ast

    tree = ast.parse((pathlib.Path(mla.__file__).parent / "__init__.pyi").read_text())
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        stubs = {
            item.name if isinstance(item, ast.FunctionDef) else item.target.id
            for item in node.body
            if isinstance(item, (ast.FunctionDef, ast.AnnAssign))
        }
        real = {name for name in dir(getattr(mla, node.name)) if not name.startswith("_")}
        assert {name for name in stubs if not name.startswith("_")} == real, node.name


# ------------------------------------------------------------------------------------- conformance


def test_conformance_of_a_layer_and_of_a_model():
    cases = pathlib.Path(os.environ["MLA_TEST_DATA"])
    layer = mla.conformance(str(cases / "goldens" / "v3_mini.safetensors"))
    assert [report.mode for report in layer] == ["absorbed", "decompressed"]
    assert all(report.passed and report.checks for report in layer)
    (absorbed,) = mla.conformance(str(cases / "goldens" / "v3_mini.safetensors"), mode="absorbed", cache="bf16")
    assert absorbed.passed and absorbed.checks[0].error > layer[0].checks[0].error > 0
    whole = mla.conformance(str(MODEL))
    assert whole and all(report.passed for report in whole)
    exact = mla.conformance(str(MODEL), tolerance=0)
    assert not all(report.passed for report in exact)


def test_conformance_says_what_cannot_be_run(tmp_path):
    with pytest.raises(RuntimeError, match="no .*safetensors"):
        mla.conformance(str(tmp_path))
    with pytest.raises(ValueError, match="weights must be f32 or bf16, got int4"):
        mla.conformance(str(MODEL), weights="int4")
    with pytest.raises(ValueError, match="mode must be"):
        mla.conformance(str(MODEL), mode="fast")
