//! Evidence: every decision, outcome and control event is an entry of a Merkle log that outsiders can verify.
//!
//! Producers publish records in a [`ring`] that lies in a mapped file. One thread makes [`entry`]s of them, appends them
//! to a write-ahead file in batches with one fdatasync each, and keeps the RFC 6962 [`tree`]; another cuts C2SP tiles and
//! entry bundles from it and signs checkpoints ([`note`]). [`log`] is what all of them share, [`verify`] reads and checks
//! logs and shares no code with the rest.
//!
//! It knows nothing of policies and budgets: what a record says is JSON that its producer has made. It never drops a
//! record in silence, and never signs two histories of one origin.

#[cfg(test)]
#[cfg(not(loom))]
mod deaths;
#[cfg(not(loom))]
pub mod disk;
#[cfg(not(loom))]
pub mod entry;
#[cfg(not(loom))]
pub mod error;
#[cfg(not(loom))]
pub mod log;
#[cfg(test)]
#[cfg(loom)]
mod loom_models;
#[cfg(not(loom))]
pub mod note;
#[cfg(not(loom))]
mod open;
pub mod ring;
#[cfg(test)]
#[cfg(not(loom))]
mod ring_tests;
#[cfg(not(loom))]
mod tiles;
#[cfg(not(loom))]
pub mod tree;
#[cfg(not(loom))]
pub mod verify;
#[cfg(not(loom))]
mod wal;
#[cfg(not(loom))]
mod writer;
