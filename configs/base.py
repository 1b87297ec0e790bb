"""All defaults and nothing else: give the rest on the command line.

python -m chopjax.train --config configs/base.py --config.source=SOURCE --config.workdir=runs/NAME ...
"""

from ml_collections import config_dict

from chopjax.commands.defaults import default_config
from chopjax.errors import UserError


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """A recipe changes what `default_config` returns; `arg`, which follows `FILE:`, has no use here."""
    if arg:
        raise UserError(f"this recipe takes no argument; name text as --config.data.sources=\"({{'path': '{arg}'}},)\"")
    return default_config()
