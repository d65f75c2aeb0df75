"""Thin faces over the runtime for those who do not sit at a terminal: a service and a page in the browser."""
