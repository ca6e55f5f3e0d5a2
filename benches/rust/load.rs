//! Loading: front door, parse, lower, compile and index, against the reference's parse alone; and the memory a loaded
//! set holds, counted by the allocator. `cargo bench -p tollkeeper-core --bench load`.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    reason = "a bench prints, and stops where something is wrong"
)]
#![expect(unsafe_code, reason = "a counting allocator has to be an allocator")]

mod shapes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use cedar_policy as reference;
use shapes::{Shape, load, median, per_item, policies};
use tollkeeper_core::policy::parse::on_parser_thread;

/// Bytes that are allocated now.
static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn measure(shape: Shape, count: usize) {
    let texts = policies(shape, count);
    let text = texts.concat();
    let rounds = (40_000 / count).clamp(5, 31);
    let before = LIVE.load(Ordering::Relaxed);
    let set = load(&texts);
    let held = LIVE.load(Ordering::Relaxed).saturating_sub(before);
    assert_eq!(set.len(), count);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut kept = None;
        ours.push(per_item(count, || kept = Some(black_box(load(&texts)))));
        drop(kept);
        // On the same kind of thread; its syntax tree is dropped there, outside the time.
        let took = on_parser_thread(|| {
            let mut kept = None;
            let took =
                per_item(count, || kept = Some(black_box(reference::PolicySet::from_str(&text).expect("parses"))));
            drop(kept);
            took
        });
        theirs.push(took.expect("thread"));
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!(
        "{:<10} {count:>6} {:>13.1} {:>11.1} {:>7.2}x {:>12} {:>12} {:>12}",
        shape.name(),
        theirs / 1e3,
        ours / 1e3,
        ours / theirs,
        held / count,
        set.memory_bytes() / count,
        text.len() / count,
    );
}

fn main() {
    println!("microseconds per policy; bytes per policy: counted by the allocator, by memory_bytes(), of text");
    println!(
        "{:<10} {:>6} {:>13} {:>11} {:>8} {:>12} {:>12} {:>12}",
        "shape", "N", "reference", "ours", "ratio", "held", "reported", "text"
    );
    for shape in Shape::ALL {
        for count in [10, 100, 1_000, 10_000] {
            measure(shape, count);
        }
    }
}
