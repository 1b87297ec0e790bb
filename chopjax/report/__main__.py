"""`python -m chopjax.report`: the summary and the page of a finished run."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("report")
