"""Multi-head Latent Attention on CPUs: models, generation, and the attention layer alone.

    import mla
    model = mla.Model("models/tiny-shakespeare-v3")
    for piece in model.generate("ROMEO:", max_tokens=60, temperature=0.8):
        print(piece, end="", flush=True)
"""

from ._mla import (
    AttentionConfig,
    AttentionLayer,
    Cache,
    ConformanceCheck,
    ConformanceReport,
    Generation,
    Model,
    State,
    Tokenizer,
    __version__,
    conformance,
)

__all__ = [
    "AttentionConfig",
    "AttentionLayer",
    "Cache",
    "ConformanceCheck",
    "ConformanceReport",
    "Generation",
    "Model",
    "State",
    "Tokenizer",
    "__version__",
    "conformance",
]
