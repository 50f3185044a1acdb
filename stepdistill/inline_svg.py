"""matplotlib's drawings as SVG elements that take colours and letters from the page around them."""

from __future__ import annotations

import html
import re
from typing import Any

from markupsafe import Markup

# colours drawn with -> the page's own, which follow the light and the dark theme
RULE, SERIES, MARK = "#020202", "#030303", "#040404"
THEME = {RULE: "var(--rule)", SERIES: "var(--series)", MARK: "var(--mark)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def short(value: float) -> str:
    """Four digits, and thousands without an exponent."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"


def inline(svg: str, title: str, label: str) -> Markup:
    """An SVG file -> an element of a page: no prolog, no style of its own, identifiers apart."""
    box = svg[svg.index("viewBox") :].split('"')[1]
    body = svg[svg.index("</defs>") + len("</defs>") :]  # after its style, which would leak
    for drawn, own in THEME.items():
        body = body.replace(drawn, own)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    prefix = re.sub(r"\W+", "-", title.lower())
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
    return Markup(f'<svg role="img" aria-label="{html.escape(label)}" viewBox="{box}">{body}')
