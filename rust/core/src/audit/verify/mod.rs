//! Reads and verifies audit logs. Shares no code with what writes them: this side was written from the formats alone, so
//! that a mistake of the writer is not repeated here.
//!
//! | file | what it is for |
//! |---|---|
//! | [`merkle`] | hashes of the tree, checking of proofs |
//! | [`note`] | signed notes, checkpoints, verifier keys |
//! | [`tiles`] | tile and bundle files |
//! | [`wal`] | write-ahead segments |
//! | [`log`] | which logs a folder holds; one entry or payload at a time |
//! | [`check`] | the verification, and [`report`], what it found |
//! | [`proof`] | proofs of inclusion and consistency, made from tiles and checked offline |
//! | [`json`], `envelope`, `complete`, `history`, `live`, `pass` | the parts of a verification |
//!
//! It never writes, takes no lock, and may run beside a writer. Truncation back to an older signed state is visible only
//! to whoever kept a newer checkpoint: see [`check::Options::since`].

pub mod check;
pub mod complete;
pub mod envelope;
pub mod error;
mod history;
pub mod json;
mod live;
pub mod log;
pub mod merkle;
pub mod note;
mod pass;
pub mod proof;
pub mod report;
pub mod tiles;
pub mod wal;
