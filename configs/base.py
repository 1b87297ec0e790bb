"""All defaults and nothing else: give the rest on the command line.

python -m chopjax.train --config configs/base.py --config.source=SOURCE --config.workdir=runs/NAME ...
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """A recipe changes what `default_config` returns; `arg` is what follows `FILE:` on the command line."""
    return default_config()
