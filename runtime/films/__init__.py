"""Whole films: many segments, files and workers, kept when they are done."""
