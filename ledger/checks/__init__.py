"""What `ledger.verify` proves, a module for each kind of evidence.

findings       what is said of a ledger
folder         which files stand in it
journals       what the journals say
chain          what the manifest and the segments say, and whether they say the same
projection     what state.db says
events         all of that in DuckDB: each request's story, the sums, the fold
"""
