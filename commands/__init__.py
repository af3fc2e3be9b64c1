"""The subcommands of `candlery`, one module each: `add` describes it to the parser, and its `run` does it."""
