"""The ConfigDict that recipes start from, made from the rooms' dataclasses, which hold the defaults."""

from ml_collections import config_dict

from chopjax.commands import settings


def default_config() -> config_dict.ConfigDict:
    """All fields with their defaults, locked: a recipe that sets a field that does not exist fails at that line.

    A recipe is `def get_config(arg=""): config = default_config(); config.train.steps = 200; return config`.
    """
    fields = settings.Settings().fields()
    for name in settings.integer_lists():
        # A field of any type, so that a recipe and a flag may set text such as "0-3,12-31".
        fields[name] = config_dict.FieldReference(fields[name], field_type=object)
    return config_dict.ConfigDict(settings.nested(fields)).lock()
