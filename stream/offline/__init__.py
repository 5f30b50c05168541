"""Without servers of one's own: backtests, the demo on embedded parts, histories and reports."""
