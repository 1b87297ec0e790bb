"""`python -m chopjax.export`: the newest checkpoint as a Hugging Face folder."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("export")
