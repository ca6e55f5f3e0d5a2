//! `decide_many`: 10,000 requests at 1,000 policies, on one thread and on two.
//! `cargo bench -p tollkeeper-core --bench batch`.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::cast_precision_loss,
    reason = "a bench prints, and stops where something is wrong"
)]

mod shapes;

use std::hint::black_box;
use std::sync::Arc;

use shapes::{Shape, case, median, per_item};
use tollkeeper_core::policy::batch::{Column, Columns, Detail, decide_many};
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::Val;

const POLICIES: usize = 1_000;
const REQUESTS: usize = 10_000;
const ROUNDS: usize = 31;

/// Where a uid stands in the table; appended if it is new.
fn place(table: &mut Vec<Arc<EntityUid>>, uid: &Arc<EntityUid>) -> u32 {
    let at = table.iter().position(|known| known == uid).unwrap_or_else(|| {
        table.push(Arc::clone(uid));
        table.len() - 1
    });
    u32::try_from(at).expect("small")
}

fn main() {
    println!(
        "nanoseconds per decision, {REQUESTS} requests, {POLICIES} policies, median of {ROUNDS} interleaved rounds"
    );
    println!(
        "{:<10} {:<10} {:>11} {:>11} {:>8} {:>8} {:>14}",
        "shape", "detail", "1 thread", "2 threads", "speed-up", "best", "decisions/s"
    );
    for shape in [Shape::Selective, Shape::AgentCore, Shape::InWhen] {
        let case = case(shape, POLICIES, REQUESTS);
        case.check(50);
        let (mut principals, mut actions, mut resources) = (Vec::new(), Vec::new(), Vec::new());
        let mut rows: [Vec<u32>; 4] = Default::default();
        for (number, ready) in case.ready.iter().enumerate() {
            rows[0].push(place(&mut principals, &ready.principal));
            rows[1].push(place(&mut actions, &ready.action));
            rows[2].push(place(&mut resources, &ready.resource));
            rows[3].push(u32::try_from(number).expect("small"));
        }
        let contexts: Vec<Val> = case.ready.iter().map(|ready| ready.context.clone()).collect();
        let columns = Columns {
            principals: Column { table: &principals, indices: &rows[0] },
            actions: Column { table: &actions, indices: &rows[1] },
            resources: Column { table: &resources, indices: &rows[2] },
            contexts: Column { table: &contexts, indices: &rows[3] },
        };
        for detail in [Detail::Decisions, Detail::Counts, Detail::Policies] {
            let run = |threads| decide_many(&case.set, &case.entities, &columns, detail, threads).expect("batch");
            assert_eq!(run(1), run(2), "threads change nothing");
            let (mut one, mut two) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                one.push(per_item(REQUESTS, || drop(black_box(run(1)))));
                two.push(per_item(REQUESTS, || drop(black_box(run(2)))));
            }
            // A busy machine has no second core to give: the best round says what the code can do.
            let best = |list: &[f64]| list.iter().copied().fold(f64::INFINITY, f64::min);
            let best = best(&one) / best(&two);
            let (one, two) = (median(&mut one), median(&mut two));
            let name = format!("{detail:?}");
            println!(
                "{:<10} {name:<10} {one:>11.1} {two:>11.1} {:>7.2}x {best:>7.2}x {:>14.0}",
                shape.name(),
                one / two,
                1e9 / one
            );
        }
    }
}
