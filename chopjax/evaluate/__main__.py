"""`python -m chopjax.evaluate`: perplexity, divergence from the teacher, sample texts."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("evaluate")
