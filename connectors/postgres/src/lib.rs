//! Everything that talks to a Postgres server: sessions, slots, snapshots, publications, preflight.
