//! Each invariant of a lazily held address space can be broken, and whoever breaks it is named.

mod common;

use std::collections::BTreeSet;

use common::{bundled, explore, kinds};
use lazytlb_machine::{Kind, MemoryModel, Verdict};
use lazytlb_sched_model::{Invariant, Litmus, Rules, Strategy};

fn test(name: &str) -> Litmus {
    bundled().into_iter().find(|litmus| litmus.program.name == name).unwrap_or_else(|| panic!("no test {name}"))
}

/// What a bundled test finds under a strategy on a machine.
fn found(name: &str, strategy: Strategy, rules: Rules, memory: MemoryModel) -> Vec<Verdict> {
    let litmus = test(name);
    let exploration = explore(&litmus, &litmus.setting(strategy, rules, memory));
    exploration.found.into_iter().map(|found| found.verdict).collect()
}

/// One way to break an invariant: the test, where it runs, the kind of the verdict, and how its message begins.
type Broken = (Invariant, &'static str, Strategy, Rules, Kind, &'static str);

const BROKEN: &[Broken] = {
    use Invariant::*;
    use Strategy::*;
    &[
        (I1, "b19-lazy-walks-freed", Refcount, Rules::X86Linux612, Kind::HardwareReaches, "I1: cpu"),
        (I1, "b20-tables-not-flushed", Refcount, Rules::Broadcast, Kind::HardwareReaches, "I1: cpu"),
        (I2, "b12b-user-execs", Refcount, Rules::Ipi, Kind::Invariant, "I2: cpu0 runs a task of mm B"),
        (I2, "b11-use-irqs-on", Refcount, Rules::X86Linux614, Kind::Invariant, "I2: cpu1 runs a task of mm A"),
        (I3, "b02-slot-not-cleared", HazardConvert, Rules::Ipi, Kind::Invariant, "I3: cpu0 borrows nothing"),
        (I3, "i03-thread-execs", Refcount, Rules::Broadcast, Kind::Invariant, "I3: cpu0 runs a task of its own mm"),
        (I4, "i04-borrow-without-a-user", Refcount, Rules::Broadcast, Kind::Invariant, "I4: cpu0 begins"),
        (I5, "s03-borrow-not-counted", Refcount, Rules::Ipi, Kind::Invariant, "I5: mm A has a count of 0"),
        (I5, "s04-reference-lost", HazardConvert, Rules::Ipi, Kind::Leak, "I5: mm A is alive"),
        (I6, "s02-mask-lost", Shootdown, Rules::Broadcast, Kind::Invariant, "I6: cpu"),
        (I6, "s02-mask-lost", UsersOnly, Rules::Broadcast, Kind::Invariant, "I6: cpu"),
        (I6, "b01-x86-unchecked", Shootdown, Rules::Ipi, Kind::Invariant, "I6: cpu"),
        (I7, "i07-borrow-not-published", HazardConvert, Rules::Broadcast, Kind::Invariant, "I7: cpu0 borrows mm A"),
        (I7, "i07-borrow-not-published", HazardIpi, Rules::Broadcast, Kind::Invariant, "I7: cpu0 borrows mm A"),
        (I7, "i07-slot-emptied-early", HazardConvert, Rules::Broadcast, Kind::Invariant, "I7: cpu0 publishes"),
        (I7, "i07-looks-too-soon", HazardIpi, Rules::Broadcast, Kind::Invariant, "I7: cpu0 looks for borrowers"),
        (I8, "b05-offline-borrowing", Shootdown, Rules::Broadcast, Kind::Invariant, "I8: cpu0 is going offline"),
        (I9, "b11-use-irqs-on", Refcount, Rules::X86Linux614, Kind::StaleTranslation, "I9: a task of mm A"),
        (I10, "i10-user-never-put", Refcount, Rules::Ipi, Kind::Invariant, "I10: mm A has 1 users"),
        (I10, "b40-walker-pins-contents", Refcount, Rules::Ipi, Kind::Assertion, "I10: the contents of mm A"),
        (I11, "b25-mmdrop-in-softirq", NoLazy, Rules::Ipi, Kind::Warning, "I11: the last reference"),
        (I11, "b24-freed-in-the-tail", Refcount, Rules::Broadcast, Kind::SleepingWhileAtomic, "I11: "),
        (I12, "b36-mmput-in-irq", Refcount, Rules::Ipi, Kind::SleepingWhileAtomic, "I12: "),
    ]
};

#[test]
fn each_invariant_is_broken_by_some_bug_and_named() {
    let mut wrong = Vec::new();
    for &(invariant, name, strategy, rules, kind, message) in BROKEN {
        for &memory in test(name).memories.iter() {
            let found = found(name, strategy, rules, memory);
            let shows = |verdict: &&Verdict| verdict.kind == kind && verdict.message.starts_with(message);
            let shown: Vec<&Verdict> = found.iter().filter(shows).collect();
            if shown.is_empty() || shown.iter().any(|verdict| Invariant::shown_by(verdict) != Some(invariant)) {
                wrong.push(format!(
                    "{invariant}: {name} {strategy} {rules} {memory}: no {kind} `{message}` in {found:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let broken: BTreeSet<Invariant> = BROKEN.iter().map(|&(invariant, ..)| invariant).collect();
    assert_eq!(broken, Invariant::ALL.into(), "an invariant that nothing breaks says nothing");
}

/// A broken invariant ends nothing: what comes of it is found as well.
#[test]
fn a_broken_invariant_hides_nothing() {
    let litmus = test("s03-borrow-not-counted");
    let exploration = explore(&litmus, &litmus.setting(Strategy::Refcount, Rules::Broadcast, MemoryModel::Sc));
    assert_eq!(kinds(&exploration), [Kind::Invariant, Kind::HardwareReaches].into());
}

/// A put by another CPU that falls right before the borrow begins is found, though nothing of what that CPU does there is
/// shared but what the check reads.
#[test]
fn what_others_do_before_a_borrow_begins_is_seen() {
    let litmus = test("i04-borrow-without-a-user");
    for memory in MemoryModel::ALL {
        let setting = litmus.setting(Strategy::Unprotected, Rules::Broadcast, memory);
        let found = explore(&litmus, &setting).found;
        assert!(found.iter().any(|found| Invariant::shown_by(&found.verdict) == Some(Invariant::I4)), "{memory}");
    }
}

/// Names and sentences are there for all, once each.
#[test]
fn invariants_have_names_and_sentences() {
    let names: BTreeSet<&str> = Invariant::ALL.iter().map(|invariant| invariant.name()).collect();
    let sentences: BTreeSet<&str> = Invariant::ALL.iter().map(|invariant| invariant.sentence()).collect();
    assert_eq!((names.len(), sentences.len()), (12, 12));
    for (index, invariant) in Invariant::ALL.iter().enumerate() {
        assert_eq!(invariant.to_string(), format!("I{}", index + 1));
    }
}
