"""`python -m chopjax.dimchop`: training with masks that choose the widths to keep; scores for the plan out."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("dimchop")
