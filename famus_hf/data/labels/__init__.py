"""What happens to labels: noise, class maps, splits, meta sets, and the records of it."""
