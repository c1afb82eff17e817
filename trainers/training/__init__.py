"""The training loop, and what it trains: scores under masks, or weights."""
