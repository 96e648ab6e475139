"""Fetching from a hostile web: the one way by which bytes of a URL enter a run.

`opener.py` is the order of work; every other file is one concern of it. img2dataset calls
`urllib.request.urlopen`, and `install.py` makes that call ours.
"""
