"""Graphs in, engines out: building, storing and loading compiled components."""
