"""From a label report to mended labels: suspects are reviewed on a page, decisions are kept, data are mended."""
