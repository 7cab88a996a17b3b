"""Side-by-side measurements. Each prints a table of ratios; none of them asserts a time."""
