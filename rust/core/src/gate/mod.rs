//! The gate: the only room that sees the others.
