"""Finding tickets, training under masks, sanity checks, and the story that binds them."""
