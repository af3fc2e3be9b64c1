"""What Candlery does; knows nothing of HTTP."""
