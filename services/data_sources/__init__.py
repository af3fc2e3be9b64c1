"""Where bars can come from, in the order they are asked."""
