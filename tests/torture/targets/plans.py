"""plan.json and the score file."""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from torture import mutate
from torture.sandbox import Reader
from torture.targets.target import Draw, Target, json_bytes, read_json
from torture.targets.weights import join, split

Raw = dict[str, Any]


def _sizes(**changes: Any) -> Callable[[Raw], Raw]:
    return lambda raw: raw | {"source": {**raw["source"], "sizes": raw["source"]["sizes"] | changes}}


def _kept(**kept: Any) -> Callable[[Raw], Raw]:
    return lambda raw: raw | {"kept": kept}


def _fields(**changes: Any) -> Callable[[Raw], Raw]:
    return lambda raw: raw | changes


PLANS: Mapping[str, Callable[[Raw], Raw]] = {
    "a trillion layers": _sizes(layers=10**12),
    "a list for the format": _fields(format=[1]),
    "nothing kept": _kept(),
    "no layers": _kept(layers=[]),
    "too many layers": _kept(layers=list(range(10**5))),
    "layers as numbers with a point": _kept(layers=[0, 1, 2.0]),
    "layers as true and false": _kept(layers=[True, False]),
    "a layer that does not exist": _kept(layers=[2**31]),
    "tokens alone": _kept(vocab=[0, 1, 2]),
    "part of a head": _kept(head_dim=[0]),
    "an edit without fields": _fields(edits=[{"kind": "refit"}]),
    "an edit of a trillion rows": _fields(edits=[{"kind": "refit", "rows": 10**12, "ridge": -1}]),
    "an edit that is a number": _fields(edits=[1]),
    "edits that are an object": _fields(edits={"a": 1}),
    "markup in a reason": _fields(reasons={"layers": {"<script>": 1}}),
    "sizes with a point": lambda raw: _sizes(**{k: float(v) for k, v in raw["source"]["sizes"].items()})(raw),
}
CHANGED = tuple(f"changed {number}" for number in range(16))


def plan_json(draw: Draw) -> Reader:
    raw = read_json(draw.bench.finished / "plan.json")
    file = draw.folder / "plan.json"
    if draw.kind in PLANS:
        file.write_bytes(json_bytes(PLANS[draw.kind](raw)))
    else:
        file.write_bytes(mutate.json_bytes(draw.rng, mutate.json_value(draw.rng, raw)))

    def read() -> str:
        from chopjax.chop.edits import Refit
        from chopjax.chop.plan import check_source
        from chopjax.commands.chop import chop_files
        from chopjax.commands.run import read_plan
        from chopjax.hf.checkpoint import open_checkpoint

        plan = read_plan(file)
        source = open_checkpoint(draw.bench.place.source)
        check_source(plan, source.config.sizes)
        if any(isinstance(edit, Refit) for edit in plan.edits):
            return ""
        chop_files(source, plan, draw.folder / "student", 10**9)
        sizes = open_checkpoint(draw.folder / "student").config.sizes
        wrong = [name for name, size in plan.sizes.items() if sizes[name] != size]
        return f"the student has other sizes than the plan: {wrong}" if wrong else ""

    return read


SCORES = (
    *("changed bytes of the data", "changed bytes of the header", "a sum that is NaN", "changed facts"),
    *("another model", "a sum below zero", "another size", "other rows", "a turned shape", "another dtype"),
    *("a sum left out", "one half of the rows", "one bit of the data"),
)


def score_file(draw: Draw) -> Reader:
    header, data = split((draw.bench.finished / "scores/scores.safetensors").read_bytes())
    (draw.folder / "scores.safetensors").write_bytes(_scores(draw, header, data))

    def read() -> str:
        from chopjax import files
        from chopjax.chop.build import build_plan
        from chopjax.chop.config import PlanConfig
        from chopjax.hf.checkpoint import open_checkpoint
        from chopjax.score.activations import finish
        from chopjax.score.file import ScoreFile

        file = ScoreFile.load(draw.folder / "scores.safetensors")
        file.check_model(files.fingerprint(draw.bench.place.source, nested=False), "scores")
        sound = ScoreFile.load(draw.bench.finished / "scores/scores.safetensors")
        sizes = open_checkpoint(draw.bench.place.source).config.sizes
        build_plan(PlanConfig(layers_by="middle", remove_layers=1, mlp=12), sizes, finish(file.sums))
        names = {*file.sums, *sound.sums}
        altered = [name for name in sorted(names) if not _equal(file.sums.get(name), sound.sums.get(name))]
        if altered:
            return f"{len(altered)} altered sums were accepted, {altered[0]} first"
        return "other rows were accepted" if file.data != sound.data else ""

    return read


def _equal(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one.tobytes() == other.tobytes()


def _scores(draw: Draw, header: Raw, data: bytes) -> bytes:
    rng = draw.rng
    name = rng.choice([name for name in header if name != "__metadata__"])
    facts = json.loads(header["__metadata__"]["chopjax_scores"])
    one, start = header[name], header[name]["data_offsets"][0]
    match draw.kind:
        case "changed bytes of the data":
            data = mutate.changed_bytes(rng, data)
        case "one bit of the data":
            data = mutate.one_bit(rng, data)
        case "changed bytes of the header":
            return mutate.changed_bytes(rng, join(json_bytes(header), b"")) + data
        case "a sum that is NaN":
            data = data[:start] + struct.pack("<d", float("nan")) + data[start + 8 :]
        case "a sum below zero":
            data = data[:start] + struct.pack("<d", -1e300) + data[start + 8 :]
        case "changed facts":
            facts = mutate.json_value(rng, facts)
        case "another model":
            facts["model"] = "0" * 16
        case "another size":
            facts["sizes"]["layers"] = rng.choice([10**9, -1, "4", 3])
        case "other rows":
            long = f"x/{'9' * 5000}-{'9' * 5001}"
            facts["data"] = rng.choice([[long], ["a/0-10"] * 10, "abc", [1], []])
        case "a turned shape":
            one["shape"] = one["shape"][::-1]
        case "another dtype":
            one["dtype"] = rng.choice(["I64", "U64", "C64", "BOOL"])
        case "a sum left out":
            del header[name]
        case "one half of the rows":
            one["shape"] = [1, *one["shape"]]
    header["__metadata__"]["chopjax_scores"] = json.dumps(facts)
    return join(json_bytes(header), data)


TARGETS = (Target("plan_json", plan_json, [*PLANS, *CHANGED]), Target("score_file", score_file, SCORES))
