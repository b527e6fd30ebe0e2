"""A batch as the tokens that have to be computed, and a backbone's forward over them.

``tree`` finds what rows share, ``segments`` is the attention of packed runs, ``attending`` lets a
backbone attend so, and ``forward`` puts them together.
"""
