"""Export trained networks for other tools, and measure what their zeros save."""
