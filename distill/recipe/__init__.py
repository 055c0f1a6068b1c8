"""Recipe files: the keys they may hold, and how files are read, overridden and written.

pydantic is not used: importing it and two models takes 0.08 s, and a bad recipe is reported after 0.14 s in all. The line
and column of every key, overrides and keys that exclude each other would be our own code beside it too.
"""
