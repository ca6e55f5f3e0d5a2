"""Builds the page of ``tollkeeper report``: one file of HTML that needs nothing from elsewhere and runs no script.

It draws counts that others have made. What it is given is hostile: every text is escaped, and what cannot be seen, or
changes the direction of text, is written out. It reads no files and no clock.
"""

from tollkeeper.report.page import Bin, Integrity, Page, page

__all__ = ["Bin", "Integrity", "Page", "page"]
