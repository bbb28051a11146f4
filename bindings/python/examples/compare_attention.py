"""Compares mla's attention layer with MLA written in NumPy: the numbers, the speed of decoding, and
the bytes that a token takes in the cache, beside multi-head attention.

    python3 compare_attention.py [--tokens 256]

With matplotlib it also writes compare_attention.svg.
"""

import argparse
import time

import mla
import numpy as np

CONFIG = mla.AttentionConfig(  # the dims of DeepSeek-V2-Lite, a quarter as wide
    hidden_size=512, num_attention_heads=16, q_lora_rank=0, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
)


def random_weights(config, random):
    def matrix(rows, cols):
        return (random.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)

    heads = config.num_attention_heads
    head = config.qk_nope_head_dim + config.qk_rope_head_dim
    return {
        "q_proj": matrix(heads * head, config.hidden_size),
        "kv_a_proj_with_mqa": matrix(
            config.kv_lora_rank + config.qk_rope_head_dim, config.hidden_size
        ),
        "kv_a_layernorm": np.ones(config.kv_lora_rank, np.float32),
        "kv_b_proj": matrix(
            heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank
        ),
        "o_proj": matrix(config.hidden_size, heads * config.v_head_dim),
    }


class NumpyAttention:
    """MLA over a latent cache, in the absorbed form, a token at a time."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        heads, rank = config.num_attention_heads, config.kv_lora_rank
        kv_b = weights["kv_b_proj"].reshape(heads, -1, rank)
        self.k_b, self.v_b = np.split(kv_b, [config.qk_nope_head_dim], axis=1)
        self.rows = np.zeros((0, rank + config.qk_rope_head_dim), np.float32)

    def rotate(self, x, position):
        rope = x.shape[-1]
        angles = position * self.config.rope_theta ** (-np.arange(0, rope, 2) / rope)
        out = np.empty_like(x)
        out[..., 0::2] = x[..., 0::2] * np.cos(angles) - x[..., 1::2] * np.sin(angles)
        out[..., 1::2] = x[..., 0::2] * np.sin(angles) + x[..., 1::2] * np.cos(angles)
        return out

    def forward(self, x):
        c, w, position = self.config, self.weights, len(self.rows)
        q = (w["q_proj"] @ x).reshape(c.num_attention_heads, -1)
        q_nope, q_rope = np.split(q, [c.qk_nope_head_dim], axis=1)
        row = w["kv_a_proj_with_mqa"] @ x
        latent = row[: c.kv_lora_rank]
        latent = latent / np.sqrt((latent * latent).mean() + 1e-6) * w["kv_a_layernorm"]
        row = np.concatenate([latent, self.rotate(row[c.kv_lora_rank :], position)])
        self.rows = np.concatenate([self.rows, row[None]])
        query = np.concatenate(
            [np.einsum("hd,hdr->hr", q_nope, self.k_b), self.rotate(q_rope, position)], axis=1
        )
        scores = query @ self.rows.T / np.sqrt(q.shape[1])
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        values = scores / scores.sum(axis=1, keepdims=True) @ self.rows[:, : c.kv_lora_rank]
        return w["o_proj"] @ np.einsum("hr,hvr->hv", values, self.v_b).ravel()


def decode(step, x):
    """Outputs of the tokens one by one, and their seconds."""
    outputs, seconds = [], []
    for token in x:
        start = time.perf_counter()
        outputs.append(step(token))
        seconds.append(time.perf_counter() - start)
    return np.array(outputs), np.array(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=256)
    tokens = parser.parse_args().tokens
    random = np.random.default_rng(0)
    weights = random_weights(CONFIG, random)
    x = random.standard_normal((tokens, CONFIG.hidden_size)).astype(np.float32)

    layer = mla.AttentionLayer(CONFIG, weights)
    cache = layer.cache("bf16")
    exact_cache = layer.cache("f32")
    ours, our_seconds = decode(lambda t: layer.forward(t[None], exact_cache)[0], x)
    decode(lambda t: layer.forward(t[None], cache)[0], x)
    theirs, their_seconds = decode(NumpyAttention(CONFIG, weights).forward, x)
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    heads = CONFIG.num_attention_heads
    head = CONFIG.qk_nope_head_dim + CONFIG.qk_rope_head_dim + CONFIG.v_head_dim
    multi_head = 2 * heads * head
    late = slice(-max(1, tokens // 4), None)
    print(f"largest difference  {error:.1e} of the largest output")
    print(f"a token with mla    {1e6 * np.median(our_seconds[late]):.0f} us")
    print(f"a token with NumPy  {1e6 * np.median(their_seconds[late]):.0f} us")
    print(f"cache, MLA          {cache.bytes_per_token} bytes per token (bf16)")
    print(f"cache, multi-head   {multi_head} bytes per token (16 bits), "
          f"{multi_head / cache.bytes_per_token:.1f} times as much")
    if error > 1e-4:
        raise SystemExit("the two differ")
    plot(our_seconds, their_seconds, cache.bytes_per_token, multi_head)


def plot(ours, theirs, latent, multi_head):
    try:
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, (speed, size) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    speed.plot(1e6 * theirs, label="NumPy")
    speed.plot(1e6 * ours, label="mla")
    speed.set(xlabel="tokens in the cache", ylabel="us per token", ylim=(0, None))
    speed.legend()
    tokens = np.arange(len(ours))
    size.plot(tokens, multi_head * tokens / 2**20, label="multi-head")
    size.plot(tokens, latent * tokens / 2**20, label="MLA")
    size.set(xlabel="tokens", ylabel="cache, MiB")
    size.legend()
    figure.tight_layout()
    figure.savefig("compare_attention.svg")


if __name__ == "__main__":
    main()
