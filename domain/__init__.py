"""The words Candlery speaks: bars, timeframes, ranges, series, verdicts and errors. Pure; no I/O."""
