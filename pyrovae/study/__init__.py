"""A study: settings of a run, the grid, study files, and the studies that ship."""
