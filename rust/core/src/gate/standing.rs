//! Whether those who act may act at all: the kill switch as one run sees it.
//!
//! While nothing is revoked anywhere this is one word read. A revocation of any principal of the chain, of the session,
//! of the tool or of everything denies; whoever has a hold or a model call of the run is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::control::{Control, Revoked};

/// Who acts, as the table of revocations names them.
#[derive(Debug)]
pub struct Standing {
    control: Arc<Control>,
    principals: Vec<Box<str>>,
    session: Box<str>,
    /// The state of the table in which none of them was found
    cleared: AtomicU64,
}

impl Standing {
    pub(super) fn new(control: &Arc<Control>, principals: Vec<Box<str>>, session: &str) -> Self {
        Self { control: Arc::clone(control), principals, session: session.into(), cleared: AtomicU64::new(0) }
    }

    /// The revocation that stops the run, or the tool in it.
    #[inline]
    pub(super) fn revoked(&self, tool: Option<&str>) -> Option<Revoked> {
        // The lowest bit: something is in force.
        if self.control.word() & 1 == 0 { None } else { self.look(tool) }
    }

    /// Whether what the run has begun, with a tool or without one, has to stop.
    #[inline]
    pub fn stops(&self, tool: Option<&str>) -> bool {
        self.revoked(tool).is_some()
    }

    fn look(&self, tool: Option<&str>) -> Option<Revoked> {
        let table = self.control.revocations();
        // Relaxed: it says of one state of the table what anybody would find in it.
        let cleared = self.cleared.load(Ordering::Relaxed) == table.word();
        if cleared && !(tool.is_some() && table.has_tools()) {
            return None;
        }
        let principals = self.principals.iter().map(|name| &**name);
        let hit = table.hit(principals, &self.session, tool).cloned();
        if hit.is_none() {
            self.cleared.store(table.word(), Ordering::Relaxed);
        }
        hit
    }
}
