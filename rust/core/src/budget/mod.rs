//! The budget room: a ledger of hierarchical budgets that cannot be overspent, shared by every process of a host.
//!
//! [`tree`] says which budgets there are, [`unit`] what is counted, [`window`] over which time and [`price`] what it
//! costs. [`ledger`] is the room's door: reserve before the work, charge while it runs, settle or release after it.
//! [`meter`] does the same for the sequences of an inference engine, many at a time.
//!
//! Inside: `layout` is what lies in memory and the step rule that makes it recoverable, `memory` the tables, `period`
//! the cells of one window, `hold` the protocol of one reservation, `recover` what is left of dead processes, `durable`
//! the spend that survives the power, `store` the file, `time` the ledger's time, `event` what an auditor wants to know.
//!
//! The room knows nothing of policies, of audit and of Python. Its memory may be written by other processes at any
//! time: every access is an atomic one, and no index that comes out of it is believed.

#[cfg(not(loom))]
pub mod admin;
#[cfg(not(loom))]
mod attach;
#[cfg(not(loom))]
mod background;
pub mod clock;
#[cfg(test)]
#[cfg(not(loom))]
mod deaths;
pub mod denial;
#[cfg(not(loom))]
mod durable;
pub mod error;
#[cfg(not(loom))]
pub mod event;
mod hold;
pub(crate) mod layout;
#[cfg(not(loom))]
pub mod ledger;
#[cfg(test)]
#[cfg(loom)]
mod loom_models;
mod memory;
#[cfg(not(loom))]
pub mod meter;
mod period;
pub mod price;
mod recover;
#[cfg(not(loom))]
mod store;
#[cfg(not(loom))]
mod time;
pub mod tree;
pub mod unit;
pub mod window;

pub use hold::{Charge, HoldId};
pub use recover::Healed;
