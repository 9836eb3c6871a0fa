"""Methods by which two networks choose, in every step, the examples that each of them learns from (torch only)."""
