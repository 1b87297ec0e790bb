"""`python -m chopjax.prepare_data`: text to packed rows."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("prepare_data")
