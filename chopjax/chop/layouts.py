"""The fixed layouts of removed layers from Just CHOP (arXiv 2305.14864, appendix C, figure 5), and `last`."""

from collections.abc import Callable, Mapping

import numpy as np

from chopjax.errors import UserError


def kept_layers(layout: str, layers: int, removed: int) -> list[int]:
    """The layers, from 0, that `layout` keeps of `layers` when `removed` go.

    `max_gap`, `input`, `output`, `middle` and `both` always keep the first and the last layer; `last` drops the final
    ones. The paper draws its layouts for 12 of 24 layers without listing indices; these rules extend them to any
    number: `middle` starts at (layers − removed) // 2, `both` gives an odd layer to the input side.

    Raises:
        UserError: unknown layout, or fewer layers would stay than the layout needs.
    """
    if layout not in LAYOUTS:
        raise UserError(f"plan.layers_by: unknown layout {layout!r}; one of {', '.join(LAYOUTS)}")
    least = 1 if layout == "last" else 2
    if not 0 <= removed <= layers - least:
        raise UserError(
            f"plan.remove_layers: {removed} of {layers} layers with layout {layout!r}; use 0 to {layers - least}"
        )
    return sorted(LAYOUTS[layout](layers, removed))


def _without(layers: int, start: int, count: int) -> set[int]:
    return set(range(layers)) - set(range(start, start + count))


def _max_gap(layers: int, removed: int) -> set[int]:
    return {int(i) for i in np.round(np.linspace(0, layers - 1, layers - removed))}


def _both(layers: int, removed: int) -> set[int]:
    at_output = removed // 2
    at_input = removed - at_output
    return _without(layers, 1, at_input) & _without(layers, layers - 1 - at_output, at_output)


LAYOUTS: Mapping[str, Callable[[int, int], set[int]]] = {
    "max_gap": _max_gap,
    "input": lambda layers, removed: _without(layers, 1, removed),
    "output": lambda layers, removed: _without(layers, layers - 1 - removed, removed),
    "middle": lambda layers, removed: _without(layers, (layers - removed) // 2, removed),
    "both": _both,
    "last": lambda layers, removed: _without(layers, layers - removed, removed),
}
