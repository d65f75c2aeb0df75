"""Measurements made once, whose results the documents quote. Not in the wheel."""
