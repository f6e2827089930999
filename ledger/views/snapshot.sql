-- snapshot: one consistent reading of a ledger's folder, into temporary tables.
--
-- Set beforehand:  ledger_path, the folder; ledger_fields, an event as a JSON struct.
-- May be set:      ledger_session, to read the events of one session alone, with ledger_batches,
--                  those that hold it, as known up to ledger_indexed_batch;
--                  ledger_allow_damage, to read what can be read of a ledger with holes.
--
-- The order matters. Journals come before the manifest: what is sealed in between is covered by
-- then, and left out below. Segments are exactly those that the manifest names.

-- Whole lines: the check is right, and the journal is the one the file is named after. All else
-- (a torn end, most of all) is what recovery would cut away.
create or replace temp table ledger_lines as
with found as (
    select parse_filename(filename) as file, json as line
    from read_ndjson_objects(
        regexp_replace(getvariable('ledger_path'), '([*?\[])', '[\1]', 'g') || '/journals/*.jsonl',
        filename = true,
        ignore_errors = true
    )
    where right(json, 28) = ',"check":"' || left(md5(left(json, length(json) - 28)), 16) || '"}'
),
stamped as (
    select
        file,
        line,
        from_json(line, '{"journal_id": "VARCHAR", "seq": "BIGINT", "session_id": "VARCHAR"}') as stamp
    from found
)
select
    file,
    stamp.journal_id as journal_id,
    stamp.seq as seq,
    substr(line, -18, 16) as line_check,
    case
        when getvariable('ledger_session') is null or stamp.session_id = getvariable('ledger_session')
        then line
    end as line
from stamped
where split_part(file, '.', 1) = stamp.journal_id;

-- A ledger that was never sealed has no manifest. One segment may stand without its line: a sealer is
-- at work, or died right there, and its events are still in the journals. More are a lost manifest.
set variable ledger_segments_seen = (
    select count(*)
    from glob(
        regexp_replace(getvariable('ledger_path'), '([*?\[])', '[\1]', 'g') || '/events/date=*/*-????????.parquet'
    )
);
set variable ledger_manifests = (
    select [getvariable('ledger_path') || '/journals/empty.jsonl'] || coalesce(list(file), [])
    from glob(regexp_replace(getvariable('ledger_path'), '([*?\[])', '[\1]', 'g') || '/manifest.jsonl')
);

create or replace temp table ledger_manifest as
with entries as (
    select unnest(from_json(json, '{
        "batch": "BIGINT", "file": "VARCHAR", "rows": "BIGINT", "size_bytes": "BIGINT", "sha256": "VARCHAR",
        "previous_sha256": "VARCHAR", "covers": "MAP(VARCHAR, BIGINT)",
        "first_at": "TIMESTAMP WITH TIME ZONE", "last_at": "TIMESTAMP WITH TIME ZONE"}'))
    from read_ndjson_objects(
        list_transform(
            getvariable('ledger_manifests'), lambda path: regexp_replace(path, '([*?\[])', '[\1]', 'g')
        ),
        ignore_errors = true
    )
    where right(json, 28) = ',"check":"' || left(md5(left(json, length(json) - 28)), 16) || '"}'
),
chained as (
    select *, lag(sha256) over (order by batch) as sha256_before from entries
)
select * exclude (sha256_before)
from chained
where case
    when coalesce(getvariable('ledger_allow_damage')::boolean, false) then true
    when previous_sha256 is distinct from sha256_before then error(
        'manifest.jsonl: batch ' || batch || ' (' || file || ') does not follow the line before it:'
        || ' a line is missing or damaged'
    )::boolean
    else true
end;

set variable ledger_manifest_is_whole = (
    select case
        when
            getvariable('ledger_segments_seen') > count(*) + 1
            and not coalesce(getvariable('ledger_allow_damage')::boolean, false)
        then error(
            'manifest.jsonl: ' || getvariable('ledger_segments_seen') || ' segments stand in events, and only '
            || count(*) || ' are listed: bughive-costs seal lists them again'
        )::boolean
        else true
    end
    from ledger_manifest
);

-- Where there is no segment to read, the one without rows stands in: it is always there.
set variable ledger_segments = (
    select coalesce(
        list(getvariable('ledger_path') || '/' || file order by batch),
        [getvariable('ledger_path') || '/events/date=1970-01-01/empty.parquet']
    )
    from ledger_manifest
    where
        getvariable('ledger_batches') is null
        or batch > getvariable('ledger_indexed_batch')::bigint
        or list_contains(getvariable('ledger_batches')::bigint[], batch)
);

-- What segments cover of a journal is a prefix. What follows begins right after it and has no
-- gap: a hole is an error, never skipped. A journal that was continued in a second file repeats
-- lines there; each (journal_id, seq) counts once.
create or replace temp table ledger_journal_events as
with coverage as (
    select entry.key as journal_id, max(entry.value) as covered_seq
    from (select unnest(map_entries(covers)) as entry from ledger_manifest)
    group by entry.key
),
unsealed as (
    select ledger_lines.*, coalesce(covered_seq, 0) as covered_seq
    from ledger_lines left join coverage using (journal_id)
    where seq > coalesce(covered_seq, 0)
),
in_order as (
    select
        *,
        coalesce(lag(seq) over journal, covered_seq) as seq_before,
        lag(line_check) over journal as check_before
    from unsealed
    window journal as (partition by journal_id order by seq)
),
sound as (
    select line
    from in_order
    where case
        when coalesce(getvariable('ledger_allow_damage')::boolean, false) then seq > seq_before
        when seq > seq_before + 1 then error(
            'journals/' || file || ': seq ' || (seq_before + 1) || ' is missing or damaged, and whole lines follow'
        )::boolean
        when seq = seq_before and line_check <> check_before then error(
            'journals/' || file || ': seq ' || seq || ' stands there twice, with different content'
        )::boolean
        else seq > seq_before
    end
)
select unnest(from_json(line, getvariable('ledger_fields'))) from sound where line is not null;
