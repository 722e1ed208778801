"""Pages for people: a report, or several side by side, as one self-contained HTML file from report.json alone."""

from fxslim.page.compare_page import render_comparison
from fxslim.page.report_page import render_page

__all__ = ["render_comparison", "render_page"]
