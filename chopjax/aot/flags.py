"""What the command line of `python -m chopjax.aot` has beside the config. Imports without jax."""

import argparse


def flags() -> argparse.ArgumentParser:
    """What the command line has beside the config."""
    parser = argparse.ArgumentParser(prog="python -m chopjax.aot --config FILE", allow_abbrev=False, add_help=False)
    parser.add_argument("--topology", required=True, help="such as v5e-64, v5p:2x2x4, 2*v5e-256, h100:8")
    parser.add_argument("--step", choices=("train", "score", "evaluate", "all"), default="train")
    parser.add_argument(
        "--estimate", action="store_true", help="compile nothing: memory, traffic and time by formulas, in seconds"
    )
    parser.add_argument("--sweep", action="store_true", help="compile the most promising settings of the same batch")
    parser.add_argument("--fit", action="store_true", help="likewise until one fits, and name the fastest")
    parser.add_argument("--save", action="store_true", help="keep what is compiled in config.compilation_cache")
    parser.add_argument("--table", action="store_true", help="print where every parameter lies")
    return parser
