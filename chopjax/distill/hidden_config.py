"""Which activations of the student are held against the teacher's, and how. Imports without jax."""

import dataclasses
import math
from typing import Literal

from chopjax import checks
from chopjax.errors import UserError

Distance = Literal["cosine", "mse", "normalised_mse", "squared"]
Project = Literal["none", "shared", "per_layer", "gather"]
LayerMap = Literal["plan", "last", "uniform", "explicit"]

# Terms of pairs of layers, of embeddings, and all of them; each is a field of `HiddenConfig`, its weight.
LAYER_TERMS = ("block_output", "mlp_input", "heads", "relation")
TERMS = ("block_output", "mlp_input", "heads", "relation", "embedding", "embedding_table")
# Terms between vectors of the width of the residual stream, which a projection may bridge.
WIDE_TERMS = ("block_output", "mlp_input", "embedding", "embedding_table")
LEARNED = ("shared", "per_layer")


@dataclasses.dataclass(frozen=True)
class HiddenConfig:
    """Losses on activations, beside those on logits. All weights 0, the default, for none.

    Each term is summed over the pairs of layers and averaged over tokens, as losses on logits are.

    Attributes:
        block_output: weight of the outputs of blocks (Minitron, arXiv 2407.14679, L_o; Just CHOP, arXiv 2305.14864,
            eq. 7 to 10).
        after_norm: whether those are taken after the norm that reads them, as in Minitron: the attention norm of the
            next block, or the final norm. Otherwise they are the residual stream itself.
        mlp_input: weight of the outputs of the norms before the MLPs (Minitron, L_i).
        heads: weight of what the heads of a layer give to the output projection (Just CHOP, eq. 7 to 10).
            Student and teacher must have the same heads.
        relation: weight of the divergence of the relations of queries, of keys and of values with themselves (MiniLMv2,
            arXiv 2012.15828; Minitron, L_att).
        embedding: weight of the embedding's outputs, token by token (Minitron, L_emb).
        embedding_table: weight of the squared difference of the two embedding tables, summed over all of their
            elements (Just CHOP, eq. 7 to 10).
        distance: between two vectors: `cosine` is 1 − cos; `mse` the mean square of the differences;
            `normalised_mse` the sum of their squares over that of the teacher's vector; `squared` the sum itself (Just
            CHOP). Of relations it is always the KL divergence, and of tables `squared`.
        project: how a narrower student meets its teacher's width: by a learned matrix, one for all (`shared`,
            Minitron) or one for each term and layer (`per_layer`, Just CHOP); by the channels that the plan kept of
            the teacher's (`gather`); or not (`none`: the widths are equal).
        layer_map: which teacher layer a student layer is held against: the one that it was (`plan`), the one as far
            from the end (`last`), every so-manieth (`uniform`), or `pairs` (`explicit`).
        layers: the student layers that take part; negative ones count from the end, and none named means all. The
            third from last alone, (-3,), is what Minitron found best.
        pairs: pairs (student layer, teacher layer), for `layer_map='explicit'`.
        relation_heads: heads in which relations are cut, whatever heads the models have; 0 for the greatest common
            divisor of their numbers of key/value heads.
        dynamic: whether the sum of the weighted terms is scaled in each step to the value of the losses on logits
            (Minitron's α, without a gradient through it).
    """

    block_output: float = 0.0
    after_norm: bool = True
    mlp_input: float = 0.0
    heads: float = 0.0
    relation: float = 0.0
    embedding: float = 0.0
    embedding_table: float = 0.0
    distance: Distance = "cosine"
    project: Project = "gather"
    layer_map: LayerMap = "plan"
    layers: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    relation_heads: int = 0
    dynamic: bool = False

    def __post_init__(self) -> None:
        checks.choices(self, "hidden")
        checks.at_least(self, "hidden", 0, *TERMS, "relation_heads")
        for term in TERMS:
            if not math.isfinite(getattr(self, term)):
                raise UserError(f"hidden.{term} is {getattr(self, term)}; give a number")
        if self.dynamic and not self.terms:
            raise UserError("hidden.dynamic scales terms that have a weight; give one, such as hidden.block_output=1.0")
        if any(len(pair) != 2 for pair in self.pairs):
            raise UserError(f"hidden.pairs is {self.pairs}; give pairs (student layer, teacher layer)")
        if bool(self.pairs) != (self.layer_map == "explicit"):
            raise UserError(
                f"hidden.layer_map is {self.layer_map!r} and hidden.pairs is {self.pairs}; "
                "'explicit' goes with pairs, and nothing else does"
            )

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that have a weight."""
        return tuple(term for term in TERMS if getattr(self, term))

    @property
    def learned(self) -> tuple[str, ...]:
        """The terms that pass through a learned projection."""
        return tuple(term for term in self.terms if term in WIDE_TERMS) if self.project in LEARNED else ()
