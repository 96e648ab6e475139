"""Watching a run: alarms, a probe while it trains, attention images, and the page about it."""
