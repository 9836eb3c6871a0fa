"""The paper: what one FaMUS step computes. Imports torch, numpy, scipy and the standard library only."""
