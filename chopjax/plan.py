"""`python -m chopjax.plan`: what to keep on every axis, written to `plan.json`."""

from chopjax.commands import cli

if __name__ == "__main__":
    cli.run("plan")
