"""Boxes of NVIDIA GPUs that are not there, for the compiler to compile for."""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping

import jax
from jax.experimental import topologies

from chopjax.errors import UserError
from chopjax.search.roofline import CHIPS

# JAX's CUDA plugin, which holds the compiler: its module, and the CUDA that it was built for.
PLUGINS: Mapping[str, str] = {"xla_cuda13": "13.0.0", "xla_cuda12": "12.9.0"}
CUDNN = "9.12.0"  # the oldest that jax 0.10 takes
LARGEST_BOX = 8  # GPUs that NVSwitch joins in HGX and DGX boxes
# Of a GPU's memory, what JAX takes for arrays unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
TAKEN = 0.75


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the compiler is told of a kind of GPU, besides what all of its compute capability have.

    Attributes:
        name: as the driver calls it.
        multiprocessors: that are in use.
        clock: highest, in GHz.
        cache: bytes of the second level.
        links: of NVLink.
    """

    name: str
    multiprocessors: int
    clock: float
    cache: int
    links: int


# NVIDIA's H100 white paper ("H100 SXM5") and the data sheets of H100 and H200, which have the same die; memory and its
# bandwidth are in `search.roofline.CHIPS`.
KINDS: Mapping[str, Gpu] = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 132, 1.98, 50 * 2**20, 18),
    "h200": Gpu("NVIDIA H200", 132, 1.98, 50 * 2**20, 18),
}

# Of compute capability 9.0, from the tables of the CUDA C++ programming guide ("Technical specifications per compute
# capability"); sizes in bytes. The compiler's own names.
_HOPPER = {
    "cuda_compute_capability": "{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }",
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
    "shared_memory_per_core": 228 * 2**10,
    "registers_per_block_limit": 2**16,
    "registers_per_core_limit": 2**16,
    "fpus_per_core": 128,
    "device_address_bits": 64,
    "device_vendor": '"NVIDIA Corporation"',
}


def devices(kind: str, count: int, boxes: int = 1) -> list[jax.Device]:
    """The GPUs of some boxes; programs compile for them but do not run. Each box is a process of its own.

    Args:
        kind: one of `KINDS`.
        count: GPUs of a box.
        boxes: number of boxes.

    Raises:
        UserError: JAX's CUDA plugin is not installed, or does not take what it is told.
    """
    name = f"{boxes}*{kind}:{count}" if boxes > 1 else f"{kind}:{count}"
    plugin = next((plugin for plugin in PLUGINS if _installed(plugin)), None)
    if plugin is None:
        raise UserError(
            f"topology {name}: compiling for GPUs needs JAX's CUDA plugin, but no GPU; pip install 'chopjax[cuda]'"
        )
    config = target_config(kind, PLUGINS[plugin])
    try:
        return list(
            topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"1x{boxes}x{count}").devices
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"topology {name}: the CUDA plugin cannot describe it ({reason}); "
            "pip install 'chopjax[cuda]' in the release of the installed jax"
        ) from error


def versions() -> dict[str, str]:
    """Distributions that make up the compiler → version, of those that are installed."""
    found = {}
    for plugin in PLUGINS:
        cuda = plugin.removeprefix("xla_cuda")
        for name in (f"jax-cuda{cuda}-pjrt", f"nvidia-cudnn-cu{cuda}"):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def target_config(kind: str, cuda: str) -> str:
    """What XLA's compiler is told of a GPU: the text of its message `GpuTargetConfigProto`.

    Args:
        kind: one of `KINDS`.
        cuda: version of CUDA, such as "13.0.0".
    """
    return "\n".join(_lines(kind, cuda))


def _lines(kind: str, cuda: str) -> Iterator[str]:
    gpu, chip = KINDS[kind], CHIPS[kind]
    told = {
        **_HOPPER,
        "name": f'"{gpu.name}"',
        "core_count": gpu.multiprocessors,
        "clock_rate_ghz": gpu.clock,
        "l2_cache_size": gpu.cache,
        "memory_bandwidth": round(chip.bandwidth),
        "device_memory_size": round(chip.memory),
        "device_interconnect_info": f"{{ active_links: {gpu.links} }}",
        "driver_version": f'"{cuda}"',
        "runtime_version": f'"{cuda}"',
        "compile_time_toolkit_version": f'"{cuda}"',
        "dnn_version": f'"{CUDNN}"',
    }
    yield "gpu_device_info {"
    for field, value in told.items():
        yield f"  {field}{' ' if str(value).startswith('{') else ': '}{value}"
    yield "}"
    yield 'platform_name: "CUDA"'
    major, minor, patch = CUDNN.split(".")
    yield f"dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}"
    yield f'device_description_str: "{gpu.name}"'


def _installed(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(f"jax_plugins.{plugin}") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False
