"""The page's style sheet: light and dark, for screen and paper, with no font or file from elsewhere."""

from collections.abc import Mapping

LIGHT = {
    "page": "#fbfaf8",
    "card": "#ffffff",
    "ink": "#1f2328",
    "soft": "#5a6270",
    "line": "#d9dadd",
    "kept": "#0d9488",
    "first": "#0b7a70",
    "second": "#b45309",
    "third": "#6d4fc2",
    "alert": "#b42318",
}
DARK = {
    "page": "#14171a",
    "card": "#1c2024",
    "ink": "#e6e8ea",
    "soft": "#a0a8b3",
    "line": "#3a4048",
    "kept": "#14a89b",
    "first": "#2dd4bf",
    "second": "#f0a44b",
    "third": "#b9a2f5",
    "alert": "#ff9a8c",
}


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_COLOURS = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
"""

CSS = (
    _COLOURS
    + """\
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; }
p { margin: 0 0 .75rem; max-width: 46rem; }
.soft, figcaption, dt { color: var(--soft); font-size: .9rem; }
.alert { color: var(--alert); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.4rem;
  margin-top: 1.25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline; }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 8rem; }
td.soft { min-width: 14rem; }
.count { text-align: right; white-space: nowrap; }
td.strong { font-weight: 650; }
.bar { display: inline-block; width: 9rem; height: .8rem; border: 1px solid var(--soft); border-radius: 2px;
  vertical-align: -.05rem; }
.bar > i { display: block; height: 100%; background: var(--kept); }
figure { margin: 0 0 1.25rem; }
figcaption { margin-top: .6rem; }
.pair > figure, .small > figure { margin: 0; min-width: 0; }
.small > figure { max-width: 26rem; }
.pair + .small { margin-top: 1.5rem; }
svg { display: block; width: 100%; height: auto; }
svg.plan { min-width: 40rem; }
svg.plan text { font-size: 13px; fill: var(--ink); }
svg.plan text.note { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg.plan image { image-rendering: pixelated; }
svg.plan .kept { fill: var(--kept); }
svg.plan .gone { fill: none; stroke: var(--soft); stroke-width: .8; stroke-dasharray: 3 2.5; }
svg.plan path.gone { stroke-dasharray: none; stroke-width: .6; }
svg.chart text { font-family: inherit !important; }
svg.chart .spots path { fill: transparent; }
svg.chart .spots path:hover { fill: var(--ink); fill-opacity: .12; }
.why > figure { margin: 0; min-width: 0; }
.why svg.chart { min-width: 19rem; max-width: 28rem; }
.why { row-gap: 2rem; }
.why + *, .scroll + h3 { margin-top: 2rem; }
table.candidates { width: auto; min-width: 60%; font-size: .93rem; }
tbody th.chosen { min-width: 0; color: var(--second); font-size: .85rem; font-weight: 650; }
.swatch { display: inline-block; width: 1.1rem; height: .75rem; margin: 0 .35rem 0 1rem; vertical-align: -.05rem; }
.swatch:first-child { margin-left: 0; }
.swatch.kept { background: var(--kept); }
.swatch.part { background: linear-gradient(90deg, transparent, #0d9488); border: 1px solid var(--line); width: 2.4rem; }
.swatch.gone { border: 1px dashed var(--soft); }
.pair, .why { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.5rem; }
.small { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); gap: 1rem; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.texts > div { border-left: 3px solid var(--line); padding-left: .8rem; min-width: 0; }
.texts > div.healed { border-color: var(--kept); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .93rem; }
.sample + .sample { margin-top: 1.25rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.prompt { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0 0 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
details > summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .82rem; line-height: 1.45; }
@media (max-width: 30rem) { main { padding: 1.5rem .7rem 3rem; } section { padding: 1rem .8rem; } }
@media print { body { background: none; } section { break-inside: avoid; } details > pre { white-space: pre-wrap; } }
"""
)
