"""Wiring, lifecycle, and what the process needs from outside."""
