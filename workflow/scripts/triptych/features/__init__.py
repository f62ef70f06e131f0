"""Vision features: computed once by a frozen encoder, stored in shards, read by image id."""
