"""Makers of small input, shared by the tests."""
