"""`python -m chopjax.cache_teacher`: a teacher's targets for the rows of a run, written once."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("cache_teacher")
