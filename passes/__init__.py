"""How a program is transformed and what it costs: one pass a file, the mapping maths beside them."""
