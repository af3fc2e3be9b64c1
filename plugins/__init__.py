"""Market plugins: one module a kind of provider."""
