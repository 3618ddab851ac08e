"""Rows of centres with their neighbours, and the neighbour lists that they are made from."""
