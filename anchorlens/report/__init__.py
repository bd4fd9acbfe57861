"""Stored runs as a static site: what they answer, beside what was published, and every notebook with live figures."""

from anchorlens.report.pages import ReportError
from anchorlens.report.site import Site, build

__all__ = ["ReportError", "Site", "build"]
