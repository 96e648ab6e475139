"""Takedowns: take images out of a finished run, and keep them out of later ones.

`python -m pipeline forget RUN UID …`. The fingerprints of what is rewritten stay, so that a later
run of the same config finds nothing to do; the uids go on a list that later fetches obey.
"""
