"""The flow explorer: one prompt's information flow, layer by layer, as a page and in a notebook's cell."""

from anchorlens.explorer.page import html, save, show

__all__ = ["html", "save", "show"]
