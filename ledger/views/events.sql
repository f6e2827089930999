-- events: all that the ledger knows; every other view is derived from it.
-- Grain: (journal_id, seq).  Reads: the manifest's segments, and journals beyond what those cover.
-- Tokens and money stand only on outcomes and settlements, so that a plain sum is right.
-- The columns are those of ledger/schema.py, in its order.
with recorded as (
    select * from ledger_journal_events
    union all by name
    select * from read_parquet(
        list_transform(
            getvariable('ledger_segments'), lambda path: regexp_replace(path, '([*?\[])', '[\1]', 'g')
        ),
        union_by_name = true,
        hive_partitioning = false
    )
)
select * from recorded
where getvariable('ledger_session') is null or session_id = getvariable('ledger_session')
