//! What only the memory model `weak` shows: orderings that are missed where all CPUs see stores in one order. `labels.rs` has
//! each label of the library.

mod common;

use std::collections::BTreeSet;

use common::{bundled, explore, kinds};
use lazytlb_machine::{Kind, Limits, MemoryModel, Search};
use lazytlb_sched_model::{Litmus, Model, Rules, Strategy};

fn named(name: &str) -> Litmus {
    bundled().into_iter().find(|litmus| litmus.program.name == name).unwrap()
}

/// What is found when these labels order nothing.
fn relaxed(test: &str, strategy: Strategy, rules: Rules, memory: MemoryModel, labels: &[&str]) -> BTreeSet<Kind> {
    let mut litmus = named(test);
    assert!(litmus.memories.contains(&memory) || litmus.is_mutation(), "{test} does not run under {memory}");
    litmus.relaxed = labels.iter().map(|&label| label.to_owned()).collect();
    let result = explore(&litmus, &litmus.setting(strategy, rules, memory));
    assert_eq!((result.complete, &result.never_met), (true, &vec![]), "{test} {labels:?} {memory}");
    kinds(&result)
}

/// The planted tests for `weak` alone: what is expected there is found, and nothing under the stronger models.
#[test]
fn missing_orders_are_found_under_weak_and_missed_under_tso() {
    let planted: Vec<Litmus> = bundled().into_iter().filter(|litmus| !litmus.relaxed.is_empty()).collect();
    for pair in ["l02", "l03", "l08", "mb4", "mb5", "s10"] {
        assert!(planted.iter().any(|litmus| litmus.program.name.starts_with(pair)), "no test of {pair}");
    }
    for litmus in planted {
        assert_eq!(litmus.memories, [MemoryModel::Weak]);
        assert!(!litmus.expected.is_empty());
        for expected in &litmus.expected {
            for memory in MemoryModel::ALL {
                let result = explore(&litmus, &litmus.setting(expected.strategy, expected.rules, memory));
                let name = format!("{} {} {} {memory}", litmus.program.name, expected.strategy, expected.rules);
                assert!(result.complete && result.never_met.is_empty(), "{name}");
                let shows = memory == MemoryModel::Weak;
                let wanted = if shows { expected.kinds.iter().copied().collect() } else { BTreeSet::new() };
                assert_eq!(kinds(&result), wanted, "{name}");
            }
        }
    }
}

/// Pair L9: of the four places that change the running task's mm, three need the barrier before it. kthread_use_mm's is
/// missed by no program (bug B14 of the catalogue): its store goes from no mm to one.
#[test]
fn the_barrier_before_an_mm_is_adopted_orders_no_user_access() {
    let found = |test| {
        let relaxed = |memory| {
            let labels = &["paths.membarrier"];
            relaxed(test, Strategy::HazardConvert, Rules::Broadcast, memory, labels)
        };
        assert_eq!(relaxed(MemoryModel::Tso), BTreeSet::new(), "{test}");
        relaxed(MemoryModel::Weak)
    };
    for test in ["membarrier-exit", "membarrier-exec", "membarrier-unuse"] {
        assert_eq!(found(test), [Kind::Assertion].into(), "{test}");
    }
    for test in ["membarrier-kthread", "membarrier-use", "membarrier-use-after-user"] {
        assert_eq!(found(test), BTreeSet::new(), "{test}");
    }
}

/// Pair L4, with three CPUs: who exchanges references must see with the older one that its CPU borrows that mm.
#[test]
fn a_relaxed_give_takes_a_live_reference_away() {
    let mut litmus = named("b04-stale-slot");
    litmus.mutant = None;
    litmus.relaxed = vec!["hazard.give".into()];
    let found = |memory| {
        let setting = litmus.setting(Strategy::HazardConvert, Rules::Broadcast, memory);
        let search = Search::Random { seed: 1, executions: 50_000 };
        kinds(&Model::new(&litmus.program, &setting).explore(search, Limits::default(), |_| {}))
    };
    assert_eq!(found(MemoryModel::Weak), [Kind::HardwareReaches].into());
    assert_eq!(found(MemoryModel::Tso), BTreeSet::new());
}
