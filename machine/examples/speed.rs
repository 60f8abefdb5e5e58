//! How fast the machine explores: `cargo run --release -p lazytlb-machine --example speed`.

use std::time::Instant;

use lazytlb_machine::{Limits, Machine, MemoryModel, Reduction, Search};
use lazytlb_programs::{hazard, shootdown};

fn exhaustive(name: &str, machine: &Machine) {
    let limits = Limits { stop_at_first: false, ..Limits::default() };
    let result = machine.explore(Search::Exhaustive(Reduction::Full), limits);
    assert!(result.complete);
    println!(
        "{name:32} {:>9} executions {:>9} states {:>3} restarts {:>10.6} s {:>10.0} states/s",
        result.executions,
        result.states,
        result.restarts,
        result.time.as_secs_f64(),
        result.states as f64 / result.time.as_secs_f64(),
    );
}

fn random(name: &str, machine: &Machine) {
    let started = Instant::now();
    let result = machine.explore(Search::Random { seed: 1, executions: 200_000 }, Limits::default());
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{name:32} {:>9.0} random executions/s {:>6.1} ns/step",
        result.executions as f64 / seconds,
        seconds * 1e9 / result.steps as f64
    );
}

fn main() {
    for memory in MemoryModel::ALL {
        for (readers, rounds) in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)] {
            exhaustive(&format!("hazard {readers}x{rounds} {memory}"), &hazard(readers, rounds, memory, &[]));
        }
        for (lazies, rounds) in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)] {
            exhaustive(&format!("shootdown {lazies}x{rounds} {memory}"), &shootdown(lazies, rounds, memory, false));
        }
        for readers in 1..=3 {
            random(&format!("hazard {readers}x1 {memory}"), &hazard(readers, 1, memory, &[]));
        }
    }
}
