"""`python -m chopjax.train`: the whole flow, from the source to the export."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("train")
