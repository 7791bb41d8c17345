"""How the page of report_page.py looks: a column of text with the reader's own fonts, in the reader's light or dark.

Predicted pieces differ by their border as well as by colour.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf6; --ink: #1e2126; --soft: #5b616c; --rule: #dddad1; --bar: #2f6690; --guide: #a34a28;
  --mask: #ffe39a; --random: #f6c3b1; --kept: #cfe6cc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --ink: #e7e4dc; --soft: #a0a6b0; --rule: #353941; --bar: #7fb2dc; --guide: #e59a76;
    --mask: #5e4a07; --random: #6b3322; --kept: #2a4d2b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 50rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .5rem 0; }
.soft, small, figcaption, dt { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.25rem .25rem 0; border-bottom: 1px solid var(--rule); text-align: left; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 400; }
td.number, th.number { text-align: right; white-space: nowrap; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .25rem 1.25rem; margin: .5rem 0; }
dd { margin: 0; }
code, .pieces { font-family: ui-monospace, "Cascadia Mono", Menlo, "Noto Sans Mono", monospace; font-size: .85em; }
.pieces { line-height: 2; }
ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .5rem 0; padding: 0; list-style: none; }
figure { margin: 1rem 0 1.5rem; }
figcaption { font-size: .9rem; margin-bottom: .5rem; }
svg { display: block; width: 100%; height: auto; font-size: 12px; font-variant-numeric: tabular-nums; }
svg text { fill: var(--ink); }
svg text.soft { fill: var(--soft); }
svg .bar { fill: var(--bar); }
svg .grid { stroke: var(--rule); }
svg .curve { fill: none; stroke: var(--bar); stroke-width: 2.5; stroke-linejoin: round; }
svg .guide { fill: none; stroke: var(--guide); stroke-width: 1.5; stroke-dasharray: 5 4; }
bdi.mask, bdi.random, bdi.kept { padding: .1em .3em; border-radius: .25em; }
bdi.mask { background: var(--mask); border: 1px solid transparent; }
bdi.random { background: var(--random); border: 1px dotted var(--ink); }
bdi.kept { background: var(--kept); border: 1px dashed var(--ink); }
.sample { padding: .75rem 1rem; border: 1px solid var(--rule); border-radius: .5rem; }
@media print { body { max-width: none; padding: 0; } figure, .sample { break-inside: avoid; } }
"""
