"""Multi-head Latent Attention on CPUs.

Arrays are NumPy's. Shapes are in brackets; ``vocab_size`` and ``hidden_size`` are the model's. Wrong
arguments raise ``ValueError``, and ``RuntimeError`` says what is wrong with a file. A call that raises
changes nothing. Calls that compute release the GIL.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__version__: str

Tokens = Sequence[int] | NDArray[np.integer[Any]]

class Tokenizer:
    """Text to tokens and back, as the published tokenizer.json says."""

    def __init__(self, path: str) -> None:
        """``path``: a model's directory, or its tokenizer.json."""
    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_ids(self) -> list[int]: ...
    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """``add_bos=None``: as the tokenizer's files say."""
    def decode(self, tokens: Tokens, skip_special: bool = True) -> str: ...
    def token_id(self, text: str) -> int | None:
        """The id of a token as the file writes it."""

class State:
    """What a model remembers of one text: a latent cache per layer. ``len()`` is its tokens."""

    def __len__(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def bytes_used(self) -> int: ...
    @property
    def bytes_per_token(self) -> int: ...
    def reserve(self, tokens: int) -> None: ...
    def fork(self, tokens: int | None = None) -> State:
        """A state of the first ``tokens``, of all by default, which goes on as if it had been computed
        on its own, and shares all memory with this one until one of them writes."""
    def evict(self, rows: Sequence[int]) -> None:
        """Forgets the tokens of these rows, which rise. The others keep their positions."""
    def truncate(self, tokens: int) -> None:
        """Forgets all but the first ``tokens``, exactly."""
    def save(self, path: str, label: str = "") -> None:
        """Writes a snapshot; a file that is there is replaced as a whole or not at all."""
    def restore(self, path: str, label: str = "") -> None:
        """Takes the text of a snapshot of the same model, format and label."""

class Generation(Iterator[Any]):
    """Iterates over what a model writes. Its state is in use until it ends or is closed."""

    def __iter__(self) -> Generation: ...
    def __next__(self) -> Any: ...
    def __enter__(self) -> Generation: ...
    def __exit__(self, *args: type[BaseException] | BaseException | TracebackType | None) -> None: ...
    def close(self) -> None:
        """Ends it: the state has what was written, but for the last token."""
    @property
    def tokens(self) -> list[int]:
        """The tokens so far."""
    @property
    def stop_reason(self) -> str | None:
        """"end_of_text", "max_tokens" or "context_full"; None before the end."""
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def generated_tokens(self) -> int: ...
    @property
    def drafted_tokens(self) -> int: ...
    @property
    def accepted_tokens(self) -> int: ...
    @property
    def decode_calls(self) -> int:
        """Passes through the model after the prompt."""

class Model:
    """A published model, straight from its files, which are mapped. Threads may share it: calls take
    turns."""

    def __init__(self, path: str, *, threads: int = 0, precision: str = "fast") -> None:
        """``threads=0``: all cores, one for small models. ``precision``: "fast" is bfloat16 arithmetic
        where this machine has units for it and a 16-bit cache, "exact" both in float32."""
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int:
        """Tokens that a text may have in all."""
    @property
    def model_type(self) -> str: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def threads(self) -> int: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    def state(self, cache_format: str | None = None) -> State:
        """An empty text. ``cache_format``: "f32", "bf16", "f16", "int8", "fp8" or "int4"; None goes
        with the precision."""
    def forward(self, tokens: Tokens, state: State, *, last: int | None = None) -> NDArray[np.float32]:
        """Continues a text by tokens [n]: logits [last, vocab_size] of the last tokens, of all by
        default."""
    def forward_batch(
        self, tokens: Sequence[Tokens], states: Sequence[State], *, last: int | None = None
    ) -> list[NDArray[np.float32]]:
        """Several texts in one pass over the weights. Each gets the bits that it would get alone."""
    def generate(
        self,
        prompt: str | Tokens,
        *,
        state: State | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop_at_eos: bool = True,
        speculative: bool = False,
        draft_tokens: int = 1,
        lookup: int = 0,
        chunk_tokens: int = 256,
    ) -> Generation:
        """Yields text, in whole characters. Without ``state`` the text is a new one; with it, it goes
        on. ``temperature=0``: always the most likely token. ``speculative`` drafts ``draft_tokens`` at
        a time by multi-token prediction; ``lookup=n`` drafts what followed the last n tokens of the
        text where they occurred before. Neither changes greedy text."""
    def generate_tokens(
        self,
        prompt: str | Tokens,
        *,
        state: State | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop_at_eos: bool = True,
        speculative: bool = False,
        draft_tokens: int = 1,
        lookup: int = 0,
        chunk_tokens: int = 256,
    ) -> Generation:
        """As ``generate``, but yields token ids."""

class AttentionConfig:
    """Shape and arithmetic of an MLA layer, by the names of config.json. The defaults are
    DeepSeek-V3's, without YaRN."""

    hidden_size: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_theta: float
    rope_interleave: bool
    rope_scaling_type: str
    rope_factor: float
    rope_original_max_position_embeddings: int
    rope_beta_fast: float
    rope_beta_slow: float
    rope_mscale: float
    rope_mscale_all_dim: float
    q_a_layernorm_eps: float
    kv_a_layernorm_eps: float
    query_norm: bool
    rope_key_per_head: bool
    q_latent_scale: float
    kv_latent_scale: float
    query_temperature_beta: float
    query_temperature_length: int
    def __init__(self, **fields: Any) -> None: ...

class Cache:
    """The latent cache of one sequence, for one layer. ``len()`` is its tokens."""

    def __len__(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def bytes_used(self) -> int: ...
    @property
    def bytes_per_token(self) -> int: ...
    def truncate(self, tokens: int) -> None: ...
    def save(self, path: str, label: str = "") -> None: ...
    def restore(self, path: str, label: str = "") -> None: ...

class AttentionLayer:
    """One MLA layer, over its own weights and caches."""

    def __init__(
        self,
        config: AttentionConfig,
        weights: dict[str, Any],
        *,
        threads: int = 0,
        precision: str = "exact",
    ) -> None:
        """``weights``: arrays [out_features, in_features] by their published names ("q_a_proj",
        "kv_b_proj", ...), norms and biases [n]. They are used where they lie, without copying, and
        kept. An array is NumPy's of float32 or float16 (or of ml_dtypes' bfloat16), a pair of a
        uint16 array and "bf16", or anything with ``__dlpack__`` (torch) of float32, float16 or
        bfloat16."""
    @staticmethod
    def load(
        path: str, layer: int = 0, *, threads: int = 0, precision: str = "exact"
    ) -> AttentionLayer:
        """A layer of the checkpoint in a directory."""
    @property
    def config(self) -> AttentionConfig: ...
    def cache(self, format: str | None = None) -> Cache: ...
    def forward(
        self,
        x: NDArray[np.float32],
        cache: Cache,
        *,
        position_ids: Sequence[int] | None = None,
        attention_mask: Sequence[bool] | None = None,
        mode: str = "automatic",
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Appends x [tokens, hidden_size] to the cache and returns the attention output
        [tokens, hidden_size], in ``out`` if it is given. Rows of x and out may lie apart."""
    def forward_batch(
        self,
        x: NDArray[np.float32],
        caches: Sequence[Cache],
        lengths: Sequence[int],
        *,
        position_ids: Sequence[int] | None = None,
        attention_mask: Sequence[bool] | None = None,
        mode: str = "automatic",
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Several sequences: x holds their tokens one sequence after the other, ``lengths`` of
        each."""

class ConformanceCheck:
    """One comparison with what a case states."""

    @property
    def name(self) -> str: ...
    @property
    def error(self) -> float:
        """Largest absolute difference."""
    @property
    def largest(self) -> float:
        """Largest absolute value expected."""
    @property
    def tolerance(self) -> float:
        """Of ``error / largest``."""
    @property
    def passed(self) -> bool: ...

class ConformanceReport:
    """A case, in one form of attention."""

    @property
    def name(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def checks(self) -> list[ConformanceCheck]: ...
    @property
    def passed(self) -> bool: ...

def conformance(
    path: str,
    *,
    isa: str | None = None,
    mode: str = "automatic",
    weights: str = "f32",
    cache: str = "f32",
    tolerance: float = 1e-3,
    model: str = "",
) -> list[ConformanceReport]:
    """Runs conformance cases, as mla-conformance does: a case file, a directory of them, or a model with
    a goldens.safetensors beside its weights. ``mode``: "automatic" runs both forms of attention.
    ``tolerance`` is of models, ``model`` the directory of the model of eviction cases."""
