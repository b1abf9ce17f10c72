"""`hourllava serve`: a page to ask checkpoints about videos, and an endpoint for other tools."""
