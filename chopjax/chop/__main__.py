"""`python -m chopjax.chop`: applies the plan; a smaller Hugging Face folder out."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("chop")
