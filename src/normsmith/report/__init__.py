"""One look for all pages: a report is one HTML file that needs no network.

A `Page` has sections, a section has pieces; a piece is a plain record and a template of its name. What the pieces are about, this room does
not know.

    pieces.py     text, code, tables, cards, pictures, rows that open, a map of them
    charts.py     Vega-Lite charts and heat maps, and the store that keeps what they share once
    page.py       Page: the pieces as one file
    templates/    a piece each
    static/       one style sheet, and the scripts that draw when something comes into view
"""

from normsmith.report.charts import Chart, Heatmap, packed
from normsmith.report.page import Page
from normsmith.report.pieces import (
    Card,
    Cell,
    Code,
    Entries,
    Entry,
    Facts,
    Grid,
    Group,
    Level,
    Link,
    Links,
    Map,
    Picture,
    Section,
    Table,
    Text,
)

__all__ = [
    "Card",
    "Cell",
    "Chart",
    "Code",
    "Entries",
    "Entry",
    "Facts",
    "Grid",
    "Group",
    "Heatmap",
    "Level",
    "Link",
    "Links",
    "Map",
    "Page",
    "Picture",
    "Section",
    "Table",
    "Text",
    "packed",
]
