-- events: all that the ledger knows; every other view is derived from it.
-- Grain: (journal_id, seq).  Reads: the manifest's segments, and journals beyond what those cover.
-- Tokens and money stand only on outcomes and settlements, so that a plain sum is right.
-- The columns are those of ledger/schema.py, in its order. Segments of older schemas may lack some: to find out,
-- DuckDB opens each of these before it reads the first.
with recorded as (
    select * from ledger_journal_events
    union all by name
    select *
    from read_parquet(ledger_patterns_of(false), hive_partitioning = false)
    where len(ledger_segments_of(false)) > 0  -- else another stands there, as DuckDB wants to see one
    union all by name
    select *
    from read_parquet(ledger_patterns_of(true), union_by_name = true, hive_partitioning = false)
    where len(ledger_segments_of(true)) > 0
)
select * from recorded
where getvariable('ledger_session') is null or session_id = getvariable('ledger_session')
