"""`python -m chopjax.aot`: what a run takes on chips that are not there."""

from chopjax.aot.flags import flags
from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("aot", required=("source",), own=flags())
