"""Models whose students the search tests look for."""

from chopjax.models.config import LayerKind, ModelConfig

NEMOTRON4_15B = ModelConfig(
    layers=32, embed=6144, kv_heads=8, q_per_kv=6, head_dim=128, mlp=24_576, vocab=256_000, positions=4096,
    norm="layer_1p", activation="relu2", gated=False,
)  # fmt: skip
LLAMA31_8B = ModelConfig(
    layers=32, embed=4096, kv_heads=8, q_per_kv=4, head_dim=128, mlp=14_336, vocab=128_256, positions=131_072
)
SMOLLM2 = ModelConfig(
    layers=30, embed=576, kv_heads=3, q_per_kv=3, head_dim=64, mlp=1536, vocab=49_152, positions=8192, tied=True
)
WINDOWED = ModelConfig(
    layers=5, embed=24, kv_heads=2, q_per_kv=3, head_dim=4, mlp=40, vocab=37, positions=64, qk_norm=True,
    kinds=(LayerKind(8), LayerKind()), kind_of_layer=(0, 0, 1, 0, 1),
)  # fmt: skip
