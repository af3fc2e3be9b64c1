"""How fast Candlery is, measured beside controls in the same run: `make bench`."""
