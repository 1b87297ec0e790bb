"""All pictures of scoring and search that a run has figures for."""

from chopjax.report.canvas import Picture
from chopjax.report.pictures import cloud, distances, distributions, importance, removal, slopes, stability
from chopjax.report.run import Run


def of_layers(run: Run) -> list[Picture]:
    """Those that say which layers."""
    return _present(importance.picture(run), distances.picture(run), *removal.pictures(run))


def of_widths(run: Run) -> list[Picture]:
    """Those that say which neurons, heads and channels."""
    return _present(*distributions.pictures(run), stability.picture(run))


def of_search(run: Run) -> list[Picture]:
    """Those that say which sizes."""
    return _present(cloud.picture(run), slopes.picture(run))


def every(run: Run) -> list[Picture]:
    """All of them."""
    return [*of_search(run), *of_layers(run), *of_widths(run)]


def _present(*found: Picture | None) -> list[Picture]:
    return [picture for picture in found if picture is not None]
