//! The tables, and how older ones are migrated.

use crate::Result;
use breakers_sqlite::Schema;
use rusqlite::Connection;

/// Marks databases of this crate in their file header ("BRKv").
const APPLICATION_ID: i32 = 0x4252_4b76;
/// The schema that this build writes.
pub const SCHEMA_VERSION: i64 = SCHEMA.version();

/// Version 1: collections and jobs. Points have tables of their own for each collection ([`create_tables`]).
const VERSION_1: &str = "
CREATE TABLE collections (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    -- Random; a restored backup gets another one, so that index files of the old history are not taken for its own.
    uid INTEGER NOT NULL,
    config TEXT NOT NULL,
    -- Of the last change; every transaction that changes points counts one up.
    seq INTEGER NOT NULL DEFAULT 0,
    -- Removals up to this change are forgotten.
    pruned INTEGER NOT NULL DEFAULT 0,
    n_points INTEGER NOT NULL DEFAULT 0
);";

/// Version 2: long operations that outlive a process.
const VERSION_2: &str = "
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL
);";

/// The migrations, in order.
pub(crate) const SCHEMA: Schema =
    Schema { application_id: APPLICATION_ID, migrations: &[VERSION_1, VERSION_2] };

/// The tables of a collection.
pub(crate) fn create_tables(connection: &Connection, id: i64) -> Result<()> {
    connection.execute_batch(&format!(
        "CREATE TABLE points_{id} (
             id INTEGER PRIMARY KEY,
             seq INTEGER NOT NULL,
             -- CRC-32 of vector and payload.
             crc INTEGER NOT NULL,
             payload TEXT,
             vector BLOB NOT NULL
         );
         CREATE INDEX points_{id}_seq ON points_{id}(seq);
         CREATE TABLE removed_{id} (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
         CREATE INDEX removed_{id}_seq ON removed_{id}(seq);
         -- A row for each value of each indexed field. `kind`: 0 truth value, 1 number, 2 text, 3 start of a long text.
         CREATE TABLE fields_{id} (
             field TEXT NOT NULL, kind INTEGER NOT NULL, value, id INTEGER NOT NULL,
             PRIMARY KEY (field, kind, value, id)
         ) WITHOUT ROWID;
         CREATE INDEX fields_{id}_id ON fields_{id}(id);"
    ))?;
    Ok(())
}

pub(crate) fn drop_tables(connection: &Connection, id: i64) -> Result<()> {
    connection.execute_batch(&format!(
        "DROP TABLE points_{id}; DROP TABLE removed_{id}; DROP TABLE fields_{id};"
    ))?;
    Ok(())
}
