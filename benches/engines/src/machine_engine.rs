//! The lab's machine.

use lazytlb_machine::{Limits, Machine, MemoryModel, Reduction, Search};
use lazytlb_programs::{hazard, shootdown};

use crate::Measured;

pub(crate) fn run() -> Vec<Measured> {
    let mut all = Vec::new();
    for memory in MemoryModel::ALL {
        for (readers, rounds) in [(1, 1), (2, 1), (3, 1), (3, 2)] {
            // What three readers can read takes minutes.
            if memory == MemoryModel::Weak && readers > 2 {
                continue;
            }
            let machine = hazard(readers, rounds, memory, &[]);
            all.push(exhaustive(format!("hazard {readers}x{rounds} exhaustive {memory}"), &machine));
        }
    }
    for (lazies, rounds) in [(2, 1), (3, 1), (3, 2)] {
        let machine = shootdown(lazies, rounds, MemoryModel::Tso, false);
        all.push(exhaustive(format!("shootdown {lazies}x{rounds} exhaustive tso"), &machine));
    }
    for memory in MemoryModel::ALL {
        for readers in 1..=3 {
            let machine = hazard(readers, 1, memory, &[]);
            all.push(Measured::time(format!("hazard {readers}x1 random {memory}"), || {
                let result = machine.explore(Search::Random { seed: 1, executions: 500_000 }, Limits::default());
                (result.executions, None, false)
            }));
        }
    }
    all
}

fn exhaustive(what: String, machine: &Machine) -> Measured {
    Measured::time(what, || {
        let limits = Limits { stop_at_first: false, ..Limits::default() };
        let result = machine.explore(Search::Exhaustive(Reduction::Full), limits);
        assert!(result.found.is_empty(), "the program is right: {:?}", result.found);
        (result.executions, Some(result.states), result.complete)
    })
}
