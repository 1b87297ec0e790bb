"""What MaxText's own steps take on the slices of `pods.py`, compiled the same way.

Needs MaxText 0.2.5 beside chopjax, on Python 3.12: pip install 'maxtext[tpu]==0.2.5', and google-tunix to distil.
A process that has measured a row here has MaxText's settings of JAX and libtpu, and should compile nothing else.

Training is the step that MaxText's `train_compile` compiles. Distillation is the step of its `train_distill`, jitted as
Tunix's trainer does: of the student's state the optimizer's is donated and the parameters are not, and the logits of
both models exist as a whole. Its trainer loads weights as it starts, so here its step is lowered with shapes only.
Weights and AdamW are float32, the teacher's weights bfloat16; what is not said in `_settings` is MaxText's default.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any
from unittest import mock

import jax

from chopjax.aot import compiling, topology
from chopjax.aot.compiling import Costs

VERSION = "0.2.5"
LENGTH = 4096


@dataclasses.dataclass(frozen=True)
class Row:
    """A step of `rows` sequences a chip of a slice, all by MaxText's names.

    Attributes:
        slices: the slice.
        model: what is trained, the student if there is a teacher.
        teacher: "" for training alone.
        sizes: in which `model` differs from what goes by that name.
        rows: sequences a chip.
        length: tokens of each.
    """

    slices: str = "v5e-16"
    model: str = "llama3.1-8b"
    teacher: str = ""
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: int = 1
    length: int = LENGTH


_TO_4B = Row(teacher="llama3.1-8b", sizes={"override_model_config": True, "base_emb_dim": 3072, "base_mlp_dim": 9216})
ROWS = {
    "8b": Row(),
    "8b-2": Row(rows=2),
    "8b-64": Row("v5e-64"),
    "8b-v6e": Row("v6e-16"),
    "8b-to-4.5b": _TO_4B,
    "8b-to-4.5b-2": dataclasses.replace(_TO_4B, rows=2),
    "8b-to-4.5b-v5p": dataclasses.replace(_TO_4B, slices="v5p-32"),
    "8b-to-8b": Row(teacher="llama3.1-8b"),
    "32b-to-8b": Row(model="qwen3-8b", teacher="qwen3-32b"),
}


def check(names: Iterable[str]) -> None:
    """Ends the program where rows cannot be compiled, before the first is.

    Raises:
        SystemExit: with status 2, after a line on stderr: there is no such row; MaxText, Tunix or libtpu is not
            installed, or MaxText in another version.
    """
    if why := next(filter(None, map(_missing, names)), ""):
        print(f"error: --peer: {why}", file=sys.stderr)
        raise SystemExit(2)


def costs(name: str) -> Costs:
    """What the compiler says of MaxText's step of one of `ROWS`; takes 10 minutes or more of two cores."""
    return compiling.compile_lowered(lower(ROWS[name]), 0.0).costs


def _missing(name: str) -> str:
    """Why a row cannot be compiled here; "" if it can."""
    if name not in ROWS:
        return f"there is no row {name}; give --only some of {', '.join(ROWS)}"
    package = f"maxtext[tpu]=={VERSION}"
    wanted = {"maxtext": package, "libtpu": package} | ({"tunix": "google-tunix"} if ROWS[name].teacher else {})
    for module, needed in wanted.items():
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed; pip install '{needed}' on Python 3.12"
    found = importlib.metadata.version("maxtext")
    return "" if found == VERSION else f"MaxText is {found}, of another build inside; pip install '{package}'"


def lower(row: Row) -> jax.stages.Lowered:
    """MaxText's step of one row, traced for the slice and not compiled."""
    for variable, value in topology.ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # As both of MaxText's programs begin.
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    flag = "--xla_tpu_spmd_rng_bit_generator_unsafe=true"
    if flag not in os.environ.get("LIBTPU_INIT_ARGS", ""):
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flag}"
    return _distillation(row) if row.teacher else _training(row)


def _settings(row: Row, file: str, **others: Any) -> Any:
    """MaxText's own configuration object."""
    from maxtext.configs import pyconfig
    from maxtext.utils.globals import MAXTEXT_CONFIGS_DIR

    settings = {
        "run_name": "pods",
        "model_name": row.model,
        "compile_topology": row.slices,
        "compile_topology_num_slices": 1,
        "per_device_batch_size": row.rows,
        "max_target_length": row.length,
        "ici_fsdp_parallelism": -1,
        "remat_policy": "full",
        "attention": "flash",
        "dtype": "bfloat16",
        "weight_dtype": "float32",
        "opt_type": "adamw",
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "jax_cache_dir": "",  # nothing compiled is to be kept: it is timed
    }
    return pyconfig.initialize(["", os.path.join(MAXTEXT_CONFIGS_DIR, file)], **(settings | others))


def _training(row: Row) -> jax.stages.Lowered:
    """As `main` of `train_compile`, up to compiling."""
    from flax.core.spmd import logical_axis_rules
    from maxtext.trainers.pre_train import train, train_compile
    from maxtext.utils import maxtext_utils, sharding

    config = _settings(row, "base.yml", **row.sizes)
    mesh = train_compile.get_topology_mesh(config)
    arguments, _, state_shardings, _, model = train_compile.get_shaped_inputs(mesh, config)
    parameters, state_shardings = sharding.maybe_update_params_sharding_with_opt(config, state_shardings)
    state_shardings = sharding.build_zero1_input_state_mesh_shardings(config, state_shardings, parameters)
    step, inputs, results, static, donated = maxtext_utils.get_functional_train_with_signature(
        train.train_step, sharding.get_input_data_sharding(config, mesh), state_shardings, model, config, parameters
    )
    with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
        jitted = jax.jit(
            step, in_shardings=inputs, out_shardings=results, static_argnums=static, donate_argnums=donated
        )
        return jitted.lower(*arguments)


def _distillation(row: Row) -> jax.stages.Lowered:
    """As `train_distill`, with shapes in place of weights."""
    from flax import nnx
    from flax.core.spmd import logical_axis_rules
    from maxtext.trainers.post_train.distillation import train_distill
    from maxtext.trainers.pre_train import train_compile
    from maxtext.utils import model_creation_utils, sharding

    file = os.path.join("post_train", "distillation.yml")
    config = _settings(row, file, **row.sizes)
    of_teacher = _settings(row, file, model_name=row.teacher, weight_dtype="bfloat16")
    # Of the tokenizer only the padding is asked, and its files lie elsewhere.
    tokenizer = mock.patch.object(
        train_distill.tokenizer, "build_tokenizer", return_value=types.SimpleNamespace(pad_id=0)
    )
    with tokenizer:
        strategy, transformation, _ = train_distill.build_training_components(config, of_teacher)
    mesh = train_compile.get_topology_mesh(config)
    _, teacher = model_creation_utils.create_nnx_abstract_model(of_teacher, mesh)
    student, optimizer = _student(config, mesh, transformation)
    teacher.eval()
    student.train()
    bundle = train_distill.ModelBundle(teacher, student)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    bundle.training_step.set_value(jax.ShapeDtypeStruct((), "int32", sharding=replicated))

    trainer = object.__new__(train_distill.MaxTextDistillationTrainer)
    trainer.strategy, trainer.wrt_filter, trainer._tunix_expects_grad_norm = strategy, nnx.Param, True
    trainer.gen_model_input_fn = dict
    batch = _batch(config, sharding.get_input_data_sharding(config, mesh))
    with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
        return nnx.jit(trainer._train_step, donate_argnames=("optimizer",)).lower(bundle, optimizer, batch).lowered


def _student(config: Any, mesh: jax.sharding.Mesh, transformation: Any) -> tuple[Any, Any]:
    """Student and optimizer, with shapes and shardings in place of arrays."""
    from flax import nnx
    from flax.core.spmd import logical_axis_rules
    from maxtext.common.train_state_nnx import TrainStateNNX
    from maxtext.utils import maxtext_utils, model_creation_utils

    create, _ = model_creation_utils.create_nnx_abstract_model(config, mesh)

    def begin() -> TrainStateNNX:
        model = create()
        return TrainStateNNX(model, nnx.Optimizer(model, transformation, wrt=nnx.Param))

    shapes, _, _ = maxtext_utils.get_abstract_state(config, mesh, begin, True)
    with logical_axis_rules(config.logical_axis_rules):
        graph, _ = nnx.split(nnx.eval_shape(begin))
    state = nnx.merge(graph, shapes)
    return state.model, state.optimizer


def _batch(config: Any, placed: jax.sharding.Sharding) -> dict[str, Any]:
    """Shapes of a batch, as `train_distill` hands it to the step."""
    from maxtext.utils import maxtext_utils

    shapes = maxtext_utils.get_shaped_batch(config, batch_sharding=placed)
    segments = shapes["inputs_segmentation"]
    return {
        "input_tokens": shapes["inputs"],
        "positions": shapes["inputs_position"],
        "attention_mask": jax.ShapeDtypeStruct(segments.shape, "bool", sharding=placed),
        "decoder_segment_ids": segments,
        **{name: shapes[name] for name in ("targets", "targets_position", "targets_segmentation")},
    }
