"""Trained networks read as physics: the layers in their order, their operators, tables, pictures, the equation."""
