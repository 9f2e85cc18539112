"""Rows that are mixed of rows of tables by attention to a few keys."""
