"""Records of several evaluations side by side: intervals, tables, plots and a page."""
