"""Statistics of compiled modules, counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from aot.slices import needs_libtpu
from jax.sharding import PartitionSpec as P

from chopjax.aot import topology
from chopjax.aot.hlo import statistics
from chopjax.aot.hlo_loops import trips
from chopjax.aot.hlo_text import parse
from chopjax.sharding.mesh import make_mesh
from chopjax.sharding.rules import MeshConfig

# An outer loop of 5 noted trips; in it one of ceil((11 - 2) / 3) = 3, whose bound, start and step are to be found. The
# all-gather's two parts, each in a fusion, share a channel. In text as compilers print it, layouts included.
TEXT = """HloModule jit_step, is_scheduled=true

%fused (p: f32[8,16]) -> f32[8,32] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  %w = f32[16,32]{1,0:T(8,128)} constant({...})
  %part = f32[32,16]{1,0} all-gather(%p), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %d = f32[8,32]{1,0} dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, estimated={"estimated_cycles":"9999"}
}

%fused.2 (p: f32[8,16]) -> f32[32,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %part = f32[32,16]{1,0} all-gather(%p), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
}

%all-reduce-scatter (p: bf16[64,4]) -> bf16[16,4] {
  %p = bf16[64,4]{1,0} parameter(0)
  ROOT %ar = bf16[64,4]{1,0} all-reduce(%p), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%sum
}

%inner_condition (s: (s32[], f32[8,16])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %bound = s32[] constant(11)
  %at = s32[] get-tuple-element(%s), index=0
  %same = s32[] copy(%at)
  ROOT %less = pred[] compare(%same, %bound), direction=LT
}

%inner (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[], f32[8,16]) parameter(0)
  %at = s32[] get-tuple-element(%s), index=0
  %three = s32[] constant(3)
  %next = s32[] add(%at, %three)
  %x = f32[8,16]{1,0} get-tuple-element(%s), index=1
  %sum.1 = (f32[8,16]{1,0}, f32[2]{0}) all-reduce(%x, %y), channel_id=4, replica_groups=mesh['a'=2,'b'=3] {'a','b'}, to_apply=%add, backend_config={"estimated_cycles":"7"}
  ROOT %out = (s32[], f32[8,16]) tuple(%next, %x)
}

%outer_condition (s: (s32[], f32[8,16])) -> pred[] {
  ROOT %yes = pred[] constant(true)
}

%outer (s: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %s = (s32[], f32[8,16]) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%s), index=1
  %f = f32[8,32]{1,0} fusion(%x), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"100"}
  %g = f32[32,16]{1,0} fusion(%x), kind=kLoop, calls=%fused.2, backend_config={"estimated_cycles":"10"}
  %two = s32[] constant(2)
  %start = (s32[], f32[8,16]) tuple(%two, %x)
  ROOT %w = (s32[], f32[8,16]) while(%start), condition=%inner_condition, body=%inner
}

ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,16]) tuple(%zero, %p)
  %w = (s32[], f32[8,16]) while(%start), condition=%outer_condition, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %h = bf16[64,4]{1,0} convert(%p)
  %rs = bf16[16,4]{1,0} fusion(%h), kind=kCustom, calls=%all-reduce-scatter, backend_config={"estimated_cycles":"1000"}
  %real = f32[2,4]{1,0} reduce-scatter(%p), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %cp = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%p), channel_id=5, source_target_pairs={{0,1}}
  %k = f32[3,16,6]{2,1,0} constant({...})
  %c = f32[8,5,6]{2,1,0} convolution(%seq, %k), window={size=3 stride=1 pad=1_1}, dim_labels=b0f_0io->b0f
  %seq = f32[8,5,16]{2,1,0} bitcast(%p)
  %kernel = f32[8,16]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"bytes_accessed":"8","flops":"12"}}}
  %lost = (s32[], f32[8,16]) while(%start), condition=%outer_condition, body=%outer_condition
  ROOT %out = f32[8,16]{1,0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_counted_by_hand() -> None:
    found = statistics(TEXT)
    assert found.cycles == 5 * (100 + 10 + 3 * 7) + 1000
    # Along the convolved axis of 5 the outer two of 3 taps meet padding once each: 13 of 15 are left.
    assert found.matmul_flops == 5 * 2 * 8 * 16 * 32 + 2 * 13 * 8 * 16 * 6
    assert found.kernel_flops == 12
    assert found.wire_bytes == pytest.approx(
        {
            "all-gather": 5 * (32 * 16 * 4) * 3 / 4,
            "all-reduce": 5 * 3 * 2 * (8 * 16 * 4 + 2 * 4) * 5 / 6,
            "reduce-scatter": (64 * 4 * 2) * 3 / 4 + (2 * 4 * 4) * 3,
            "collective-permute": 8 * 16 * 4,
        }
    )
    assert found.collectives == {"all-gather": 5, "all-reduce": 15, "reduce-scatter": 2, "collective-permute": 1}
    assert found.unknown_loops == 1


# Of a compiler for GPUs: collectives of several arrays start, and end, in instructions of their own.
GPU_TEXT = """HloModule jit_step, is_scheduled=true

ENTRY %main (p: bf16[2,6,9,8]) -> bf16[2,6,9,8] {
  %p = bf16[2,6,9,8]{3,2,1,0} parameter(0)
  %ag = ((bf16[8]{0}, /*index=1*/bf16[2,8]{1,0}), (bf16[32]{0}, bf16[2,32]{1,0})) all-gather-start(%p, %p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %ag.done = (bf16[32]{0}, bf16[2,32]{1,0}) all-gather-done(%ag)
  %rs = ((bf16[256,8]{1,0}), bf16[64,8]{1,0}) reduce-scatter-start(%p), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %aa = ((f32[16]{0}, f32[4]{0}), (f32[16]{0}, f32[4]{0})) all-to-all-start(%p, %p), channel_id=3, replica_groups={{0,1}}, dimensions={0}
  %ar = (f32[10]{0}, f32[]) all-reduce-start(%p, %p), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  %fwd = (bf16[2,6,9,8]{3,1,2,0}, u8[0]{0}) custom-call(%p, %p, %p), custom_call_target="__cudnn$fmhaScaleBiasSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "6", "9", "9"]}, "mask_type": "CAUSAL"}}
  %bwd = (bf16[2,6,9,8]{3,1,2,0}, u8[0]{0}) custom-call(%p, %p, %p), custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "6", "9", "9"]}, "mask_type": "NO_MASK"}}
  %left = f32[5,7]{1,0} bitcast(%p)
  %gemm = (f32[5,3]{1,0}, s8[99]{0}) custom-call(%left, %p), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %other = bf16[2,6,9,8]{3,2,1,0} custom-call(%p), custom_call_target="something"
}
"""  # noqa: E501


def test_of_gpus_counted_by_hand() -> None:
    found = statistics(GPU_TEXT)
    causal, whole = 2 * (2 * 2 * 6 * 8) * (9 * 10 / 2), 5 * (2 * 2 * 6 * 8) * 9 * 9
    assert found.kernel_flops == causal + whole + 2 * 5 * 7 * 3
    assert found.wire_bytes == {
        "all-gather": 3 / 4 * 2 * (32 + 2 * 32),
        "reduce-scatter": 3 / 4 * 2 * 256 * 8,
        "all-to-all": 1 / 2 * 4 * (16 + 4),
        "all-reduce": 3 / 4 * 2 * 4 * (10 + 1),
    }
    assert set(found.collectives.values()) == {1} and found.cycles == found.matmul_flops == 0


def test_trips_that_cannot_be_read() -> None:
    module = parse(TEXT)
    assert trips(module, "main", module.computations["main"]["lost"]) is None
    assert trips(module, "outer", module.computations["outer"]["w"]) == 3


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry computation"):
        statistics("module @jit_step {}")


@needs_libtpu
def test_of_a_compiled_loop() -> None:
    """7 products of [8, 256] and [256, 512], each summed over 4 devices."""
    mesh = make_mesh(MeshConfig(), topology.devices("v5e:2x2"))

    def step(x: jax.Array, weights: jax.Array) -> jax.Array:
        def one(total: jax.Array, layer: jax.Array) -> tuple[jax.Array, None]:
            return total + jax.lax.psum(jnp.sin(x + total[:, :256]) @ layer, "fsdp"), None

        return jax.lax.scan(one, jnp.zeros((8, 512), jnp.bfloat16), weights)[0]

    by_device = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(None, "fsdp")), out_specs=P(), check_vma=False)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8, 256), (7, 4 * 256, 512))]
    with jax.default_matmul_precision("default"):
        found = statistics(jax.jit(by_device).lower(*shapes).compile().as_text())
    assert found.matmul_flops == 7 * 2 * 8 * 256 * 512
    assert sum(found.wire_bytes.values()) == 7 * 2 * (8 * 512 * 2) * 3 / 4
    assert found.unknown_loops == 0 and found.cycles > 7 * 100
