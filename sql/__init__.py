"""SQL that Candlery runs, kept as files."""
