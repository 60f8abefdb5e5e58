//! What only the memory model `weak` shows: orderings that are missed where all CPUs see stores in one order.

mod common;

use std::collections::BTreeSet;

use common::{bundled, explore, kinds};
use lazytlb_machine::{Kind, MemoryModel};
use lazytlb_sched_model::{Litmus, Rules, Strategy};

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
    for pair in ["l02", "l03", "l04", "l08"] {
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
                // The barrier of a CPU that goes offline is a fence, and store buffers show that one, too.
                let shows =
                    memory == MemoryModel::Weak || memory == MemoryModel::Tso && litmus.relaxed == ["teardown.offline"];
                let wanted: BTreeSet<Kind> =
                    if shows { expected.kinds.iter().copied().collect() } else { BTreeSet::new() };
                assert_eq!(kinds(&result), wanted, "{name}");
            }
        }
    }
}

/// The same for orders that have no test of their own.
#[test]
fn answers_and_drops_are_ordered() {
    for (label, rules, strategy, kind) in [
        ("smp.ack", Rules::Ipi, Strategy::Refcount, Kind::HardwareReaches),
        ("smp.ack", Rules::Broadcast, Strategy::Shootdown, Kind::HardwareReaches),
        ("mm.mmdrop", Rules::IpiUnlazy, Strategy::Refcount, Kind::Dereferences),
    ] {
        let found = |memory| relaxed("lazy-then-other-user", strategy, rules, memory, &[label]);
        assert!(found(MemoryModel::Weak).contains(&kind), "{label} {rules}");
        assert_eq!(found(MemoryModel::Tso), BTreeSet::new(), "{label} {rules}");
    }
}

/// Where an order is had twice, taking one away is no bug.
#[test]
fn some_orders_are_had_twice() {
    for (test, strategy, rules, labels) in [
        // Whoever takes a reference drops it, which is a full barrier.
        ("offline-while-freed", Strategy::HazardConvert, Rules::Broadcast, &["hazard.take", "hazard.take_back"][..]),
        // So does whoever scans: the reference of all users is dropped behind the scan.
        ("offline-while-freed", Strategy::HazardConvert, Rules::Broadcast, &["hazard.scan"]),
        // An interrupt brings what its sender knew. Only a CPU that is asked by two at once needs more.
        ("lazy-then-other-user", Strategy::Refcount, Rules::Ipi, &["smp.post"]),
        ("lazy-then-other-user", Strategy::Refcount, Rules::Ipi, &["smp.take"]),
    ] {
        assert_eq!(relaxed(test, strategy, rules, MemoryModel::Weak, labels), BTreeSet::new(), "{labels:?}");
    }
}
