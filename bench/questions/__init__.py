"""One module a question: its docstring says what is measured, beside what; `run` measures it."""
