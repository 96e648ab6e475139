"""Studies: many training runs that differ in a few keys, and what came of them."""
