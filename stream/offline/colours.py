"""Colours of a report's page and of its plots.

In the page they are CSS variables; a plot is drawn in those of the light page.
"""

COLOURS = {
    "ink": ("#2a2a26", "#d9d8cf"),
    "faint": ("#6d6c64", "#96958c"),
    "line": ("#cfcec5", "#45453f"),
    "paper": ("#fffffa", "#171814"),
    "served": ("#2c6a4a", "#86c79f"),
    "drift": ("#b2432a", "#ee8f76"),
    "dense": ("#dfe7ef", "#202a36"),
    "pruning": ("#f4e9cf", "#302a1b"),
    "layer-1": ("#3f6a9c", "#8db4e2"),
    "layer-2": ("#a06a12", "#dfb163"),
    "layer-3": ("#7d4f8b", "#c99bd6"),
}
"""By name: the colour on a light and on a dark page."""
