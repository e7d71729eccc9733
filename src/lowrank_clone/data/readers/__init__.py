"""Files and Hub datasets as documents: `split_source` cuts a source into parts, `read_documents` reads one of them."""
