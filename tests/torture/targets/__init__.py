"""The fuzz targets by name."""

from torture.targets import chats, configs, folders, plans, rows, text, tokenizers, weights, workdir

_ROOMS = (weights, configs, tokenizers, folders, plans, rows, workdir, chats, text)
TARGETS = {target.name: target for room in _ROOMS for target in room.TARGETS}
