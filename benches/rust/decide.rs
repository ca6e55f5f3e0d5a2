//! One decision, against the reference called from Rust on the same set in the same run: medians of short interleaved
//! repeats. `cargo bench -p tollkeeper-core --bench decide [-- SHAPE]`.
//!
//! `-- count SHAPE N` runs 10,000 of our decisions in one function, `count_here`, to be counted by
//! `valgrind --tool=callgrind --toggle-collect='*count_here*'`: a noisy machine does not change instruction counts.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    reason = "a bench prints, and stops where something is wrong"
)]

mod shapes;

use std::hint::black_box;

use shapes::{Case, Shape, case, median, per_item};
use tollkeeper_core::policy::set::{Mode, Prepared, Scratch};

const REQUESTS: usize = 60;
const SIZES: [usize; 5] = [1, 10, 100, 1_000, 10_000];
/// Rounds of interleaved repeats.
const ROUNDS: usize = 31;

fn ours(case: &Case, scratch: &mut Scratch, mode: Mode, passes: usize) -> f64 {
    per_item(passes * case.ready.len(), || {
        for _ in 0..passes {
            for ready in &case.ready {
                black_box(case.set.decide(&ready.request(), &case.entities, scratch, mode));
            }
        }
    })
}

fn ready(case: &Case, prepared: &[Prepared], scratch: &mut Scratch, passes: usize) -> f64 {
    per_item(passes * case.ready.len(), || {
        for _ in 0..passes {
            for (ready, prepared) in case.ready.iter().zip(prepared) {
                black_box(case.set.decide_prepared(prepared, ready.context.as_value(), scratch, Mode::Full));
            }
        }
    })
}

#[inline(never)]
fn count_here(case: &Case, scratch: &mut Scratch) {
    for ready in case.ready.iter().cycle().take(10_000) {
        black_box(case.set.decide(&ready.request(), &case.entities, scratch, Mode::Full));
    }
}

fn theirs(case: &Case, count: usize) -> f64 {
    per_item(count, || {
        for request in case.reference_ready.iter().take(count) {
            black_box(case.ask_reference(request));
        }
    })
}

fn measure(shape: Shape, size: usize) {
    let case = case(shape, size, REQUESTS);
    let (compared, reasons, errors) = case.check(if size > 1_000 { 12 } else { REQUESTS });
    let mut scratch = Scratch::new();
    let everything = matches!(shape, Shape::AllApply | Shape::AllErr);
    // A repeat of ours is some tens of microseconds, one of the reference at least one decision.
    let passes = if everything { (200 / size).max(1) } else { 5 };
    let asked = (600 / size).clamp(1, REQUESTS);
    let prepared: Vec<Prepared> = case.ready.iter().map(|ready| ready.prepare(&case)).collect();
    let [mut full, mut quick, mut fast, mut reference] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        reference.push(theirs(&case, asked));
        // Untimed: the reference has just walked through megabytes, which ours would pay for.
        ours(&case, &mut scratch, Mode::Full, 1);
        full.push(ours(&case, &mut scratch, Mode::Full, passes));
        quick.push(ours(&case, &mut scratch, Mode::DecisionOnly, passes));
        fast.push(ready(&case, &prepared, &mut scratch, passes));
    }
    let [full, quick, fast, reference] = [full, quick, fast, reference].map(|mut list| median(&mut list));
    println!(
        "{:<10} {size:>6} {compared:>5} {reasons:>7} {errors:>6} {reference:>13.0} {full:>11.1} {fast:>11.1} {quick:>11.1} {:>9.0}x {:>9.2}",
        shape.name(),
        reference / full,
        full / size as f64,
    );
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    if let [mode, shape, size] = wanted.as_slice()
        && mode == "count"
    {
        let shape = Shape::ALL.into_iter().find(|known| known.name() == shape).expect("a shape");
        let case = case(shape, size.parse().expect("a number"), REQUESTS);
        return count_here(&case, &mut Scratch::new());
    }
    println!("nanoseconds per decision; `checked` requests were compared with the reference first");
    println!(
        "{:<10} {:>6} {:>5} {:>7} {:>6} {:>13} {:>11} {:>11} {:>11} {:>10} {:>9}",
        "shape", "N", "check", "reasons", "errors", "reference", "full", "prepared", "decision", "ratio", "full/N"
    );
    for shape in Shape::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|word| word == shape.name()) {
            continue;
        }
        for size in SIZES {
            measure(shape, size);
        }
    }
}
