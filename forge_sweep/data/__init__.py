"""What `forge-sweep data` does with versions in the feature store: make, describe, compare, export and drop them."""
