"""Where examples come from: the Hub, folders, tables, archives of benchmarks, streams."""
