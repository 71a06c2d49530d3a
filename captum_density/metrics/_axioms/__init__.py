"""The axioms as figures: 0 where an attribution satisfies one. Sundararajan et al., ICML 2017, arXiv:1703.01365."""
