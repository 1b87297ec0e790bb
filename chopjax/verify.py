"""`python -m chopjax.verify [FOLDER]`: checks an exported folder; without an argument, that of the config."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("verify", positional="export.folder")
