"""How far scores can be trusted, measured where the truth about captions is known."""
