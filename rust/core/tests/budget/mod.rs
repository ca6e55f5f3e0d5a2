//! What the model test and the fuzz target of the ledger share: the model, and the driver that asks both.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that stops where something is wrong, and each user takes a part"
)]

pub mod drive;
pub mod model;
