"""Checks: pure functions from data to findings."""
