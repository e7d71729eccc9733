"""How shards are made: their records, the writer, and the datatrove pipeline over all parts of a source."""
