-- snapshot: one consistent reading of a ledger's folder, into temporary tables.
--
-- Set beforehand:  ledger_path, the folder; ledger_fields, those of a journal's line, as a JSON struct, journal_id,
--                  seq, schema_version and check among them; ledger_schema_version, the newest they are of.
-- May be set:      ledger_session, to read the events of one session alone, with ledger_batches, those
--                  that hold it, as known up to ledger_indexed_batch, whose hash is ledger_indexed_sha256;
--                  ledger_allow_damage, to read what can be read of a ledger with holes.
--
-- The order matters. Journals come before the manifest: what is sealed in between is covered by
-- then, and left out below. Segments are exactly those that the manifest names.

-- Whole lines are those whose check is right. All else (a torn end, most of all) is what recovery
-- would cut away. Lines are read as text without a column delimiter, so that garbage of any length
-- is but one more line that fails its check.
create or replace temp macro ledger_as_pattern(path) as regexp_replace(path, '([*?\[])', '[\1]', 'g');
create or replace temp macro ledger_whole_lines(paths, longest_bytes) as table
    select file_index::bigint as file_index, parse_filename(filename) as file, line
    from read_csv(
        list_transform(paths, lambda path: ledger_as_pattern(path)),
        columns = {'line': 'VARCHAR'},
        delim = chr(1),
        quote = '',
        escape = '',
        header = false,
        auto_detect = false,
        strict_mode = false,
        ignore_errors = true,
        max_line_size = longest_bytes,
        buffer_size = 2 * longest_bytes,
        hive_partitioning = false
    )
    where ends_with(line, ',"check":"' || left(md5(encode(line)[:-29]), 16) || '"}');

-- Of a journal's file count the lines of the journal that it is named after. A line of another session
-- keeps its place in the sequence: of it are read only its beginning, which numbers it, and its check.
set variable ledger_journals = (
    select list(file) from glob(ledger_as_pattern(getvariable('ledger_path')) || '/journals/*.jsonl')
);
create or replace temp table ledger_lines as
with parsed as (
    select
        file_index,
        from_json(
            case
                when
                    getvariable('ledger_session') is null
                    or json_extract_string(line, '$.session_id') = getvariable('ledger_session')
                then line
                else regexp_extract(line, '^.*?"schema_version":\d+') || right(line, 28)
            end,
            getvariable('ledger_fields')
        ) as event
    from ledger_whole_lines(getvariable('ledger_journals'), 2097152)
    where starts_with(line, '{"journal_id":"' || split_part(file, '.', 1) || '","seq":')
)
select file_index, unnest(event) from parsed;

-- A ledger that was never sealed has no manifest. One segment may stand without its line: a sealer is
-- at work, or died right there, and its events are still in the journals. More are a lost manifest.
set variable ledger_segments_seen = (
    select count(*)
    from glob(ledger_as_pattern(getvariable('ledger_path')) || '/events/date=*/*-????????.parquet')
);
set variable ledger_manifests = (
    select [getvariable('ledger_path') || '/journals/empty.jsonl'] || coalesce(list(file), [])
    from glob(ledger_as_pattern(getvariable('ledger_path')) || '/manifest.jsonl')
);

create or replace temp table ledger_manifest as
with entries as (
    select unnest(from_json(line, '{
        "batch": "BIGINT", "file": "VARCHAR", "rows": "BIGINT", "size_bytes": "BIGINT", "sha256": "VARCHAR",
        "previous_sha256": "VARCHAR", "covers": "MAP(VARCHAR, BIGINT)", "schema_version": "BIGINT",
        "first_at": "TIMESTAMP WITH TIME ZONE", "last_at": "TIMESTAMP WITH TIME ZONE"}'))
    from ledger_whole_lines(getvariable('ledger_manifests'), 16777216)
),
chained as (
    select *, lag(sha256) over (order by batch) as sha256_before from entries
)
select * exclude (sha256_before)
from chained
where case
    when schema_version > getvariable('ledger_schema_version')::bigint then error(
        'manifest.jsonl holds events of schema ' || schema_version || ', written by a newer'
        || ' bughive-costs; this one knows up to ' || getvariable('ledger_schema_version') || ': update it'
    )::boolean
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

-- Which batches hold a session is known only from an index of this very chain: state.db may be older
-- than the segments, or newer, where a backup of it came back. Where there is no segment to read, the
-- one without rows stands in: it is always there.
set variable ledger_index_holds = (
    select count(*) > 0
    from ledger_manifest
    where
        batch = getvariable('ledger_indexed_batch')::bigint
        and sha256 = getvariable('ledger_indexed_sha256')
);
set variable ledger_segments = (
    select coalesce(
        list(getvariable('ledger_path') || '/' || file order by batch),
        [getvariable('ledger_path') || '/events/date=1970-01-01/empty.parquet']
    )
    from ledger_manifest
    where
        not getvariable('ledger_index_holds')::boolean
        or batch > getvariable('ledger_indexed_batch')::bigint
        or list_contains(getvariable('ledger_batches')::bigint[], batch)
);
set variable ledger_older_segments = (
    select coalesce(list(getvariable('ledger_path') || '/' || file), [])
    from ledger_manifest
    where schema_version < getvariable('ledger_schema_version')::bigint
);
create or replace temp macro ledger_segments_of(are_older) as list_filter(
    getvariable('ledger_segments'),
    lambda path: list_contains(getvariable('ledger_older_segments'), path) = are_older
);
create or replace temp macro ledger_patterns_or_one(segments) as list_transform(
    if(len(segments) > 0, segments, getvariable('ledger_segments')[1:1]), lambda path: ledger_as_pattern(path)
);
create or replace temp macro ledger_patterns_of(are_older) as ledger_patterns_or_one(ledger_segments_of(are_older));

-- Of one session no journal's end is seen, and of a damaged ledger none is believed.
set variable ledger_asks_every_request = (
    getvariable('ledger_session') is not null or coalesce(getvariable('ledger_allow_damage')::boolean, false)
);

-- What segments cover of a journal is a prefix. What follows begins right after it and has no
-- gap: a hole is an error, never skipped. A journal that was continued in a second file repeats
-- lines there; each (journal_id, seq) counts once. Lines are put in order only where it takes that to
-- tell: not of a journal in one file whose lines are just those that follow, each once.
create or replace temp table ledger_covered as
select entry.key as journal_id, max(entry.value) as covered_seq
from (select unnest(map_entries(covers)) as entry from ledger_manifest)
group by entry.key;

create or replace temp table ledger_in_question as
with files as (
    select
        any_value(journal_id) as journal_id,
        count(*) as lines,
        count(distinct seq) as seqs,
        min(seq) as first_seq,
        max(seq) as last_seq,
        max(schema_version) as newest_version
    from ledger_lines
    group by file_index
)
select journal_id
from files left join ledger_covered using (journal_id)
group by journal_id
having
    count(*) > 1
    or max(lines) <> max(seqs)
    or max(lines) <> max(last_seq) - coalesce(max(covered_seq), 0)
    or max(first_seq) <= coalesce(max(covered_seq), 0)
    or max(newest_version) > getvariable('ledger_schema_version')::bigint;

create or replace temp table ledger_lines_in_order as
with in_order as (
    select
        ledger_lines.*,
        coalesce(covered_seq, 0) as covered_seq,
        greatest(lag(seq) over journal, covered_seq, 0) as seq_before,
        lag("check") over journal as check_before,
        'journals/' || parse_filename(getvariable('ledger_journals')[file_index + 1]) as file
    from ledger_lines left join ledger_covered using (journal_id)
    where journal_id in (from ledger_in_question)
    window journal as (partition by journal_id order by seq)
)
select * exclude (covered_seq, seq_before, check_before, file)
from in_order
where case
    when schema_version > getvariable('ledger_schema_version')::bigint then error(
        file || ' holds events of schema ' || schema_version || ', written by a newer'
        || ' bughive-costs; this one knows up to ' || getvariable('ledger_schema_version') || ': update it'
    )::boolean
    when seq is null then false  -- not numbered: no line of a journal
    when seq <= covered_seq or getvariable('ledger_allow_damage')::boolean then seq > seq_before
    when seq > seq_before + 1 then error(
        file || ': seq ' || (seq_before + 1) || ' is missing or damaged, and whole lines follow'
    )::boolean
    when seq = seq_before and "check" <> check_before then error(
        file || ': seq ' || seq || ' stands there twice, with different content'
    )::boolean
    else seq > seq_before
end;

delete from ledger_lines where journal_id is null or journal_id in (from ledger_in_question);
insert into ledger_lines from ledger_lines_in_order;
drop table ledger_lines_in_order;

create or replace temp view ledger_journal_events as select * exclude (file_index, "check") from ledger_lines;
