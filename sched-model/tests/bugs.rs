//! The known bugs: each is found where its test says, and is gone when what was planted is taken out. For each property
//! of the checker there is a bug that breaks it.

mod common;

use std::collections::{BTreeSet, HashSet};

use common::{bundled, explore, kinds};
use lazytlb_machine::{Kind, MemoryModel};
use lazytlb_sched_model::kernel::KernelStatement;
use lazytlb_sched_model::{Litmus, Mutant, Rules, Statement, Strategy};

fn bugs() -> impl Iterator<Item = Litmus> {
    bundled().into_iter().filter(|litmus| litmus.bug.is_some())
}

#[test]
fn every_bug_is_found_as_its_test_says() {
    let mut all_kinds = BTreeSet::new();
    let mut wrong = Vec::new();
    for litmus in bugs() {
        assert!(!litmus.expected.is_empty(), "{} says nowhere where it is found", litmus.program.name);
        for expected in &litmus.expected {
            for &memory in &litmus.memories {
                let setting = litmus.setting(expected.strategy, expected.rules, memory);
                let result = explore(&litmus, &setting);
                let name = format!("{} {} {} {memory}", litmus.program.name, expected.strategy, expected.rules);
                if !expected.is_met_by(&kinds(&result)) {
                    wrong.push(format!("{name}: {:?}, not {:?}", kinds(&result), expected.kinds));
                }
                if !result.never_met.is_empty() {
                    wrong.push(format!("{name}: {:?} is dropped and never met", result.never_met));
                }
                all_kinds.extend(kinds(&result));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What an address space can do wrong. The others (out of bounds, panic, ...) are the machine's own tests'.
    let expected = [
        Kind::Holds,
        Kind::Dereferences,
        Kind::HardwareReaches,
        Kind::DoubleFree,
        Kind::Leak,
        Kind::Deadlock,
        Kind::SleepingWhileAtomic,
        Kind::Warning,
        Kind::Assertion,
    ];
    let missing: Vec<Kind> = expected.into_iter().filter(|kind| !all_kinds.contains(kind)).collect();
    assert!(missing.is_empty(), "no bug shows {missing:?}");
}

/// The same program without the planted bug passes on the machines where it is found: what is found is the bug and nothing
/// else.
#[test]
fn without_what_was_planted_nothing_is_found() {
    // Programs that are bundled without a bug as well have a test of their own; the others are run once.
    let unnamed = |litmus: &Litmus| lazytlb_sched_model::Program { name: String::new(), ..litmus.program.clone() };
    let planted = |litmus: &Litmus| litmus.is_mutation() && litmus.mutant != Some(Mutant::Caller);
    let clean: HashSet<_> = bundled().iter().filter(|litmus| !litmus.is_mutation()).map(unnamed).collect();
    let mut wrong = Vec::new();
    for mut litmus in bugs().filter(planted).filter(|litmus| !clean.contains(&unnamed(litmus))) {
        litmus.dropped.clear();
        litmus.relaxed.clear();
        litmus.mutant = None;
        let machines: BTreeSet<Rules> = litmus.expected.iter().map(|expected| expected.rules).collect();
        for rules in machines {
            for strategy in Strategy::all().filter(|strategy| strategy.claims(rules)) {
                // All strategies under `weak` are what the clean tests are for.
                for &memory in litmus.memories.iter().filter(|&&memory| memory != MemoryModel::Weak) {
                    // Three CPUs under those that free later as well.
                    let is_large = litmus.program.cpus() > 2 && strategy.frees_later();
                    if is_large || litmus.is_slow_under(strategy, rules, memory) {
                        continue;
                    }
                    let result = explore(&litmus, &litmus.setting(strategy, rules, memory));
                    let name = &litmus.program.name;
                    if !result.found.is_empty() || !result.complete {
                        wrong.push(format!("{name} {strategy} {rules} {memory}: complete {}", result.complete));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A missing barrier between a store and a later load shows only where stores are buffered.
#[test]
fn the_missing_fence_is_missed_under_sc() {
    let litmus = bugs().find(|litmus| litmus.program.name == "b18-flush-not-fenced").unwrap();
    for expected in &litmus.expected {
        let setting = litmus.setting(expected.strategy, expected.rules, MemoryModel::Sc);
        let result = explore(&litmus, &setting);
        assert_eq!((kinds(&result), result.complete), (BTreeSet::new(), true), "{}", expected.strategy);
    }
}

/// C1: what is read too early harms where a switch looks into the mm that it leaves, and the strategy evicts.
#[test]
fn a_stale_prev_is_looked_into_by_a_switch_that_looks() {
    let mut litmus = bugs().find(|litmus| litmus.program.name == "c01-looks-before-irqs-off").unwrap();
    let found = |litmus: &Litmus| {
        let result = explore(litmus, &litmus.setting(Strategy::HazardIpi, Rules::Plain, MemoryModel::Sc));
        (kinds(&result), result.complete)
    };
    assert_eq!(found(&litmus), (BTreeSet::new(), true), "where it only compares it");
    litmus.mutant = Some(Mutant::LooksAtPrev);
    assert_eq!(found(&litmus), ([Kind::Dereferences].into(), true), "where it looks into it");
    let early = Statement::Kernel(KernelStatement::OfflineLookingEarly);
    for statement in litmus.program.scripts[0].iter_mut().filter(|statement| **statement == early) {
        *statement = Statement::Offline;
    }
    assert_eq!(found(&litmus), (BTreeSet::new(), true), "where it is read in time");
}

/// What a worker frees is freed where one may sleep.
#[test]
fn strategies_with_a_worker_free_nothing_in_a_tail() {
    let litmus = bugs().find(|litmus| litmus.program.name == "b24-freed-in-the-tail").unwrap();
    for strategy in [Strategy::RefcountDeferred, Strategy::HazardDeadlineWorker, Strategy::ShootdownBatched] {
        for memory in [MemoryModel::Sc, MemoryModel::Tso] {
            let result = explore(&litmus, &litmus.setting(strategy, Rules::Broadcast, memory));
            assert_eq!((kinds(&result), result.complete), (BTreeSet::new(), true), "{strategy} {memory}");
        }
    }
}

/// Variants that no suite runs on every test: those that wait for ever, or have the worker collect, or check themselves.
#[test]
fn variants_pass_small_tests() {
    let names = ["exit-alone", "reader-puts-last", "isolated", "deep-idle", "use-mm", "offline-and-back"];
    for litmus in bundled().into_iter().filter(|litmus| names.contains(&litmus.program.name.as_str())) {
        let variants =
            Strategy::KNOWN.iter().copied().filter(|&strategy| !Strategy::all().any(|other| other == strategy));
        for strategy in variants {
            for memory in [MemoryModel::Sc, MemoryModel::Tso] {
                let result = explore(&litmus, &litmus.setting(strategy, Rules::Broadcast, memory));
                let name = &litmus.program.name;
                assert_eq!((kinds(&result), result.complete), (BTreeSet::new(), true), "{name} {strategy} {memory}");
            }
        }
    }
}
