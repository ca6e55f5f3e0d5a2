"""The look of the page, light and dark. Colours are told apart by people who do not see all of them, and by order."""

from typing import Final

# Text has a contrast of at least 4.5 against what it stands on, what is drawn at least 3, in both schemes.
STYLE: Final = """
:root { color-scheme: light dark; --page: #ffffff; --panel: #f6f7f8; --line: #d5d9dd; --text: #1c2024; --soft: #4a525a;
  --allowed: #3d7ab8; --denied: #c0341d; --would: #b07a00; --good: #1f7a3d; --bad: #b3261e; --warn: #8a5a00;
  --c0: #3d7ab8; --c1: #b07a00; --c2: #1d8f6d; --c3: #a4529a; --c4: #c0341d; --c5: #5b6ee1; --c6: #7d868e }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --panel: #1d2125; --line: #383f46; --text: #eceff1; --soft: #b4bcc4;
    --allowed: #6aa9e4; --denied: #f0705a; --would: #e0b04a; --good: #6fcf8f; --bad: #ff8a7a; --warn: #e8bd62;
    --c0: #6aa9e4; --c1: #e0b04a; --c2: #4cc4a0; --c3: #d490cc; --c4: #f0705a; --c5: #98a4ff; --c6: #98a2ab } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust: 100% }
main, header, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px }
header { padding-top: 28px }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere }
h2 { font-size: 19px; margin: 40px 0 8px; padding-top: 14px; border-top: 1px solid var(--line) }
h3 { font-size: 15px; margin: 22px 0 4px }
p { margin: 6px 0; overflow-wrap: anywhere; max-width: 80ch }
.soft, .caption, summary, footer { color: var(--soft) }
.soft { font-size: 14px }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 10px 0 0 }
a { color: var(--text); text-underline-offset: 3px }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 12px; margin: 18px 0 0;
  padding: 0 }
.cards div { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px }
.cards dt { color: var(--soft); font-size: 14px }
.cards dd { margin: 0; font-size: 21px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.good { color: var(--good) } .bad { color: var(--bad) } .warn { color: var(--warn) }
.wide { overflow-x: auto; margin: 4px 0 10px }
.wide:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--allowed); outline-offset: 2px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px }
.caption { font-size: 14px; margin: 14px 0 0 }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; vertical-align: bottom }
tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 158px }
th.stamp, td { white-space: nowrap }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 260px }
th.number, td.number { text-align: right; white-space: nowrap }
td.draw { width: 28%; min-width: 100px; padding-right: 16px }
td.draw svg { display: block; width: 100%; height: 14px; margin-top: 4px }
tfoot td { color: var(--soft); border-bottom: 0 }
details { margin: 6px 0 }
summary { cursor: pointer; font-size: 14px }
figure { margin: 12px 0 4px }
figcaption { font-size: 14px; color: var(--soft); margin-bottom: 6px }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; list-style: none; padding: 0; margin: 0 0 6px;
  font-size: 14px }
.legend li { overflow-wrap: anywhere }
.legend svg { width: 11px; height: 11px; margin-right: 6px }
.plot { display: grid; grid-template-columns: auto minmax(0, 1fr) }
.plot svg { display: block; overflow: visible }
.plot text { fill: var(--soft); font-size: 12px; font-family: inherit }
.grid { stroke: var(--line); stroke-width: 1 } .base { stroke: var(--soft); stroke-width: 1 }
.allowed { fill: var(--allowed) } .denied { fill: var(--denied) } .would_deny { fill: var(--would) }
.c0 { fill: var(--c0) } .c1 { fill: var(--c1) } .c2 { fill: var(--c2) } .c3 { fill: var(--c3) } .c4 { fill: var(--c4) }
.c5 { fill: var(--c5) } .c6 { fill: var(--c6) }
.findings { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 6px 18px; margin: 12px 0 }
.findings dt { color: var(--soft) } .findings dd { margin: 0; overflow-wrap: anywhere }
footer { font-size: 14px; margin-top: 40px; padding-top: 14px; padding-bottom: 30px; border-top: 1px solid var(--line) }
@media (max-width: 620px) {
  .minor { display: none } main, header, footer { padding-left: 14px; padding-right: 14px }
  .cards { grid-template-columns: 1fr 1fr; gap: 8px } .cards dd { font-size: 19px }
  .findings { grid-template-columns: minmax(0, 1fr); gap: 0 } .findings dd { margin-bottom: 8px }
  th, td { padding-right: 10px } .edge { text-anchor: end } }
@media print { details { display: block } nav { display: none } section { break-inside: avoid } }
"""
