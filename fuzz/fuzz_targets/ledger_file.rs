//! A damaged ledger file: refused with a clear error, or a ledger in which every cell adds up and which can be used.
//!
//! Pairs of place and byte are written over a ledger in which something was spent. A changed count that still adds up
//! cannot be told from a true one; everything else has to be noticed, and nothing may panic or spend beyond a limit.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use tollkeeper_core::budget::clock::FakeClock;
use tollkeeper_core::budget::ledger::{Ledger, Options};
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;

fn spec() -> LedgerSpec {
    let limit = |window| LimitSpec { unit: Unit::Tokens, window, limit: 1_000, overdraft: 0 };
    let budget = |path: &str| BudgetSpec {
        path: path.to_owned(),
        limits: vec![limit(Window::Total), limit(Window::Day)],
        children_max: None,
    };
    let budgets = vec![budget("a"), budget("a/b")];
    LedgerSpec { budgets, holds: 4, nodes: Some(3), volatile: true, ..LedgerSpec::default() }
}

fn clock() -> Arc<FakeClock> {
    Arc::new(FakeClock::new(1_709_251_199_000))
}

fn file() -> PathBuf {
    std::env::temp_dir().join(format!("ledger-fuzz-{}", std::process::id()))
}

/// A ledger of which 300 tokens are spent, as its file's bytes.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let _ = std::fs::remove_file(file());
        {
            let ledger = Ledger::open(spec(), &file(), clock()).expect("a good spec");
            let node = ledger.node("a/b").expect("it is there");
            let hold = ledger.reserve(&node, &Amounts::of(Unit::Tokens, 300), ledger.now_ms(), Options::default());
            assert!(ledger.settle(hold.expect("it fits"), &[Some(300), None, None, None, None]).expect("a good amount"));
        }
        std::fs::read(file()).expect("the ledger has made it")
    })
}

fuzz_target!(|bytes: &[u8]| {
    let mut damaged = whole().to_vec();
    let len = damaged.len();
    for change in bytes.chunks_exact(4) {
        let place = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        // Most of the file is room for later; the tables that matter lie in front.
        damaged[place % len] = change[3];
    }
    if let [.., cut] = bytes
        && cut % 16 == 0
    {
        damaged.truncate(len * usize::from(*cut) / 256);
    }
    std::fs::write(file(), &damaged).expect("the folder can be written");
    let Ok(ledger) = Ledger::open(spec(), &file(), clock()) else { return };
    for path in ledger.paths() {
        let Ok(node) = ledger.node(&path) else { continue };
        for usage in ledger.usage(&node) {
            let parts = i128::from(usage.used) + i128::from(usage.held) + i128::from(usage.available);
            let most = i128::from(usage.limit) + i128::from(usage.overdraft);
            assert!(parts + i128::from(usage.stranded) <= most.max(0) || usage.used == i64::MAX, "{path}: {usage:?}");
        }
        if let Ok(hold) = ledger.reserve(&node, &Amounts::of(Unit::Tokens, 10), ledger.now_ms(), Options::default()) {
            assert!(ledger.release(hold));
        }
    }
    let _ = ledger.recover();
});
