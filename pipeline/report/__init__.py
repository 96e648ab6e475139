"""What a run did, for people: `report.html`, and what it shares with `status`."""
