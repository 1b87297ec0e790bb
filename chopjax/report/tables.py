"""Tables of the page."""

from collections.abc import Sequence

from chopjax.report.markup import Markup, element


def scrolled(heads: Sequence[Markup], lines: Sequence[Markup], kind: str | None = None) -> Markup:
    """A table with a line of heads, which scrolls by itself where the page is narrow."""
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *lines), class_=kind)
    return element("div", table, class_="scroll", tabindex=0)
