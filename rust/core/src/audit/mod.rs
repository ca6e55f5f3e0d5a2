//! Evidence: every decision, outcome and control event is an entry of a Merkle log.

pub mod verify;
