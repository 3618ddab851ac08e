"""Rows of centres with their neighbours, and the lists that fill them."""
