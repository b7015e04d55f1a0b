"""A replay as one HTML page that opens offline: memory over time for each allocator, and a map of address by time.

Data are numpy columns, compressed into the page; `view.js` draws them on two canvases. No library is in it: those that
draw charts embed megabytes of script in each file, and draw each block as an object of its own, which ends at some ten
thousand. A page of a small trace is a hundred kilobytes, and one of the most blocks that are drawn a few megabytes.
"""

from poolalloc.analysis.view.layers import Layer, of_observed, of_result
from poolalloc.analysis.view.page import render

__all__ = ["Layer", "of_observed", "of_result", "render"]
