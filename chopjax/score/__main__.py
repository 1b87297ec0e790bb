"""`python -m chopjax.score`: forward passes over calibration text, scores out."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("score")
