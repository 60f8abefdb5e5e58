//! Every ordering of the library, by its label: a program that shows that it is needed, or the reason why taking it away is
//! no bug.
//!
//! The labels are read from the sources, so that one that is new must say what shows it.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{bundled, explore, kinds};
use lazytlb_machine::Kind::{Assertion, Dereferences, HardwareReaches, Invariant, Leak, StaleTranslation, Warning};
use lazytlb_machine::MemoryModel::{Sc, Tso, Weak};
use lazytlb_machine::{Kind, Limits, MemoryModel, Reduction, Search};
use lazytlb_sched_model::Rules::{self, Broadcast, Ipi, IpiUnlazy, X86Broadcast, X86Linux612, X86Linux614};
use lazytlb_sched_model::Strategy::{
    self, EpochPinned, EpochQs, EpochQsIdle, GeneralHazard, HazardConvert, HazardIpi, Refcount, Shootdown,
};
use lazytlb_sched_model::{Litmus, Model};

/// How an order is taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// The access or fence has no effect.
    Drop,
    /// It orders nothing.
    Relax,
}
use How::{Drop, Relax};

/// Where an order is taken away: a test, a strategy, a machine, a memory model.
type Where = (&'static str, Strategy, Rules, MemoryModel);

/// What is found without an order.
const CAUGHT: &[(&str, How, Where, Kind)] = &[
    ("cpumask.look", Relax, ("l08-mask-read-not-ordered", Refcount, Ipi, Weak), HardwareReaches),
    ("epoch_pinned.advance", Relax, ("user-to-user", EpochPinned, Broadcast, Weak), HardwareReaches),
    ("epoch_pinned.pin", Drop, ("lazy-then-other-user", EpochPinned, Broadcast, Sc), HardwareReaches),
    ("epoch_pinned.unpin", Relax, ("leave-before-idle", EpochPinned, Broadcast, Weak), HardwareReaches),
    ("epoch_qs.borrow", Drop, ("lazy-then-other-user", EpochQs, Broadcast, Sc), HardwareReaches),
    ("epoch_qs.quiesce", Relax, ("leave-before-idle", EpochQs, Broadcast, Weak), HardwareReaches),
    ("general_hazard.release", Relax, ("leave-before-idle", GeneralHazard, Broadcast, Weak), HardwareReaches),
    ("general_hazard.scan", Relax, ("leave-before-idle", GeneralHazard, Broadcast, Weak), HardwareReaches),
    ("hazard.give", Relax, ("l03-give-not-ordered", HazardConvert, Broadcast, Weak), Leak),
    ("hazard.publish", Drop, ("i07-borrow-not-published", HazardConvert, Broadcast, Sc), HardwareReaches),
    ("hazard.scan", Relax, ("l02-scan-not-ordered", HazardIpi, Broadcast, Weak), HardwareReaches),
    ("hazard.take", Drop, ("s05-reference-twice", HazardConvert, Ipi, Sc), Dereferences),
    ("hazard.take_back", Drop, ("lazy-then-other-user", HazardConvert, Broadcast, Sc), HardwareReaches),
    ("hazard.unpublish", Relax, ("l02-unpublish-not-ordered", HazardConvert, Broadcast, Weak), HardwareReaches),
    ("lazy_tlb.membarrier", Drop, ("mb1-borrow-ends-without-a-barrier", HazardConvert, Ipi, Tso), Assertion),
    ("list.push", Relax, ("leave-before-idle", GeneralHazard, Broadcast, Weak), Dereferences),
    ("list.take", Relax, ("user-to-user", EpochQs, Broadcast, Weak), HardwareReaches),
    ("membarrier.after", Drop, ("membarrier-switch", Refcount, Broadcast, Weak), Assertion),
    ("membarrier.before", Drop, ("mb3-membarrier-without-its-first", Refcount, Ipi, Tso), Assertion),
    ("mm.mmdrop", Relax, ("lazy-then-other-user", Refcount, IpiUnlazy, Weak), Dereferences),
    ("mm.mmgrab", Drop, ("s03-borrow-not-counted", Refcount, Broadcast, Sc), HardwareReaches),
    ("mm.mmput", Relax, ("lazy-then-other-user", HazardConvert, Broadcast, Weak), HardwareReaches),
    ("mm_switch.flush", Drop, ("b18-flush-not-fenced", Refcount, Ipi, Tso), HardwareReaches),
    ("mm_switch.mask_clear", Relax, ("l08-mask-cleared-not-ordered", Refcount, Ipi, Weak), HardwareReaches),
    ("mm_switch.mask_set", Relax, ("b18-flush-not-fenced", Refcount, Ipi, Weak), HardwareReaches),
    ("paths.exec_mmap", Drop, ("i03-thread-execs", Shootdown, Broadcast, Sc), HardwareReaches),
    ("paths.exit_mm", Drop, ("b29-exit-publishes-preemptible", HazardIpi, Ipi, Sc), Warning),
    ("paths.kthread_unuse_mm", Drop, ("use-mm", HazardConvert, Ipi, Sc), Invariant),
    ("paths.kthread_use_mm", Drop, ("b11-use-irqs-on", Refcount, X86Linux614, Sc), StaleTranslation),
    ("paths.membarrier", Relax, ("mb4-exit-without-a-barrier", Refcount, Broadcast, Weak), Assertion),
    ("smp.ack", Relax, ("lazy-then-other-user", Refcount, Ipi, Weak), HardwareReaches),
    ("smp.ack", Relax, ("lazy-then-other-user", Shootdown, Broadcast, Weak), HardwareReaches),
    ("switcher.call_self", Drop, ("exit-alone", HazardIpi, Broadcast, Sc), Invariant),
    ("switcher.switch", Drop, ("mb2-switch-without-a-barrier", Refcount, Broadcast, Tso), Assertion),
    ("teardown.idle", Drop, ("deep-idle", EpochQsIdle, Broadcast, Tso), Invariant),
    ("teardown.offline", Drop, ("s06-offline-cpu-keeps-a-reference", HazardConvert, Broadcast, Tso), Assertion),
    ("teardown.sched_force_init_mm", Drop, ("b09-eviction-irqs-on", Refcount, IpiUnlazy, Sc), HardwareReaches),
    ("temporary.unuse", Drop, ("temporary-unuse", Refcount, X86Linux612, Sc), StaleTranslation),
    ("temporary.use", Drop, ("temporary-mm", HazardIpi, Broadcast, Sc), HardwareReaches),
    ("waiting.turn", Relax, ("leave-before-idle", GeneralHazard, Broadcast, Weak), Leak),
    ("waiting.turn_again", Relax, ("s10-looks-again-unordered", GeneralHazard, Broadcast, Weak), Leak),
    ("x86.global_asid", Relax, ("asid-while-flushed", Refcount, X86Broadcast, Weak), HardwareReaches),
    ("x86.global_asid_lock", Drop, ("asid-for-two", Refcount, X86Broadcast, Sc), Assertion),
    ("x86.global_asid_lock", Relax, ("asid-for-two", Refcount, X86Broadcast, Weak), Assertion),
    ("x86.switching", Drop, ("b16-switch-window", Refcount, X86Linux614, Sc), StaleTranslation),
    ("x86.switching_fence", Drop, ("b17-switch-not-fenced", Refcount, X86Linux614, Tso), StaleTranslation),
    ("x86.tlb_gen", Drop, ("access-unmap", Refcount, X86Linux612, Sc), StaleTranslation),
    ("x86.tlb_gen", Relax, ("walker-munmap", Refcount, X86Linux612, Weak), HardwareReaches),
    ("x86.tlb_gen_read", Relax, ("l08-generation-not-ordered", Refcount, X86Linux612, Weak), HardwareReaches),
    ("x86.unlazy", Drop, ("t01-unlazy-not-fenced", Refcount, X86Linux612, Tso), StaleTranslation),
];

/// What is had twice, or not needed by the library's own parts: nothing is found without it.
const HAD_TWICE: &[(&str, How, Where, &str)] = &[
    (
        "epoch_pinned.look",
        Relax,
        ("leave-before-idle", EpochPinned, Broadcast, Weak),
        "what a look sees counts once the epoch has advanced, which is a full barrier behind it",
    ),
    (
        "epoch_qs.look",
        Relax,
        ("leave-before-idle", EpochQs, Broadcast, Weak),
        "what a look lets go is freed when the turn is over, which is a full barrier behind it",
    ),
    (
        "general_hazard.acquire",
        Drop,
        ("leave-before-idle", GeneralHazard, Broadcast, Weak),
        "L5 is for who acquires without a reference; a borrower owns a user, whose last put is a full barrier (L1)",
    ),
    (
        "hazard.scan",
        Relax,
        ("offline-while-freed", HazardConvert, Broadcast, Weak),
        "the users' own reference is dropped behind the scan, a full barrier",
    ),
    (
        "hazard.take",
        Relax,
        ("offline-while-freed", HazardConvert, Broadcast, Weak),
        "whoever takes a reference drops it, a full barrier",
    ),
    ("hazard.take_back", Relax, ("lazy-then-other-user", HazardConvert, Broadcast, Weak), "likewise"),
    (
        "hazard_ipi.before_scan",
        Drop,
        ("leave-before-idle", HazardIpi, Broadcast, Weak),
        "the RFC's; the decrement that has reached zero is a full barrier",
    ),
    (
        "hazard_ipi.grab",
        Drop,
        ("leave-before-idle", HazardIpi, Broadcast, Weak),
        "the RFC's; a borrower owns a user (L1)",
    ),
    (
        "smp.post",
        Relax,
        ("lazy-then-other-user", Refcount, Ipi, Weak),
        "an interrupt brings what its sender knew; only a CPU that is asked by two at once needs more",
    ),
    ("smp.take", Relax, ("lazy-then-other-user", Refcount, Ipi, Weak), "likewise"),
    (
        "waiting.push",
        Relax,
        ("leave-before-idle", GeneralHazard, Broadcast, Weak),
        "whoever pushes asks for a turn before it looks, a full barrier, or has the worker look",
    ),
    (
        "x86.global_asid_irqs",
        Drop,
        ("broadcast-exit", Refcount, X86Broadcast, Sc),
        "it is for a strategy that frees in an interrupt (`may_free`), and none of the library's does",
    ),
    (
        "x86.is_lazy",
        Relax,
        ("flush-lazy", Refcount, X86Linux612, Weak),
        "it orders what the lazy CPU did as a user before the free of the page (`weak` knows no user accesses)",
    ),
    (
        "x86.loaded_asid",
        Relax,
        ("munmap-lazy", Refcount, X86Broadcast, Weak),
        "who reads it has begun a broadcast and waits for it, which waits for walks",
    ),
    (
        "x86.loaded_read",
        Relax,
        ("munmap-lazy", Refcount, X86Broadcast, Weak),
        "as for what it pairs with, x86.loaded_asid and x86.loaded_mm",
    ),
    (
        "x86.loaded_mm",
        Relax,
        ("lazy-then-other-user", Refcount, X86Broadcast, Weak),
        "whom a flush passes by because of it could use old translations only (`weak` knows no user accesses); where tables are \
         freed, nobody is passed by, or TLBSYNC waits for walks",
    ),
];

/// Labels that another test answers for.
const ELSEWHERE: &[&str] = &["arm64.active", "arm64.new_context", "arm64.pool", "arm64.reserve"];

/// Programs of which the suite has none alike.
const OWN: &[&str] = &[
    // A flush comes between the two halves of the way back from temporary tables: the root is loaded, the books are not written.
    "lazytlb-litmus 1
name temporary-unuse
machine x86-6.12
mm A T
user a A
user a2 A
user t T

cpu a                | cpu a2
access               | unmap A
use-temporary-mm T   |
unuse-temporary-mm   |
access               |
",
    // The flush of CPU 0 gives the mm an ASID, and that of CPU 1 must know that CPU 0 is not on it yet.
    "lazytlb-litmus 1
name asid-while-flushed
machine x86-broadcast
mm A
user sh A
user sh-thread A

cpu sh          | cpu sh-thread    | walker 0
flush A         | munmap A         |
",
    // Both flushes find that it is time for an ASID.
    "lazytlb-litmus 1
name asid-for-two
machine x86-broadcast
mm A
user sh A
user sh-thread A

cpu sh          | cpu sh-thread
flush A         | flush A
flush A         |
",
];

fn named(name: &str) -> Litmus {
    let own = OWN.iter().map(|text| Litmus::parse(text).unwrap());
    own.chain(bundled()).find(|litmus| litmus.program.name == name).unwrap_or_else(|| panic!("no test {name}"))
}

/// The test, with this taken away and nothing else.
fn without(label: &str, how: How, test: &str) -> Litmus {
    let labels = |taken| if how == taken { vec![label.to_owned()] } else { vec![] };
    Litmus { dropped: labels(Drop), relaxed: labels(Relax), mutant: None, ..named(test) }
}

/// Each source of the library: where it is, and its text.
fn for_each_source(f: &mut impl FnMut(&Path, &str)) {
    fn below(folder: &Path, f: &mut impl FnMut(&Path, &str)) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, f);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                f(&path, &std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for room in ["core", "refcount", "shootdown", "hazard", "epoch"] {
        below(&workspace.join(room).join("src"), f);
    }
}

#[test]
fn every_label_of_the_library_says_what_shows_it() {
    let mut labels = BTreeSet::new();
    for_each_source(&mut |_, text| {
        let named = text.split("Label::new(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
        // Those of unit tests are left out.
        labels.extend(named.filter(|label| !label.starts_with("test.")));
    });
    assert!(labels.contains("mm.mmput") && labels.contains("x86.tlb_gen"), "the sources have labels: {labels:?}");
    let caught = CAUGHT.iter().map(|&(label, ..)| label);
    let twice = HAD_TWICE.iter().map(|&(label, ..)| label);
    let said: BTreeSet<String> = caught.chain(twice).chain(ELSEWHERE.iter().copied()).map(str::to_owned).collect();
    assert_eq!(labels, said, "each label is in one of the tables, and nothing else is");
}

/// Where an order is taken away is told by its label, so there is none without.
#[test]
fn every_order_of_the_library_has_a_label() {
    let is_order = |word: &str| ["Acquire", "Release", "AcqRel", "SeqCst"].contains(&word);
    let mut without = Vec::new();
    for_each_source(&mut |path, text| {
        // Here orders are defined, and given their meaning on the machine at hand.
        if path.ends_with("core/src/memory.rs") || path.ends_with("core/src/native.rs") {
            return;
        }
        let code = text.split("#[cfg(test)]").next().unwrap().lines().enumerate();
        for (number, line) in code.filter(|(_, line)| !line.trim_start().starts_with("//") && !line.starts_with("use "))
        {
            let mut words = line.split_inclusive(|letter: char| !letter.is_alphanumeric() && letter != '_').peekable();
            while let Some(word) = words.next() {
                let order = word.trim_end_matches(|letter: char| !letter.is_alphanumeric());
                if is_order(order) && !(word.ends_with('.') && words.peek() == Some(&"at(")) {
                    without.push(format!("{}:{}: {order}", path.display(), number + 1));
                }
            }
        }
    });
    assert!(without.is_empty(), "{}", without.join("\n"));
}

/// What is found first without it.
#[test]
fn what_is_needed_is_missed() {
    let mut wrong = Vec::new();
    for &(label, how, (test, strategy, rules, memory), kind) in CAUGHT {
        let litmus = without(label, how, test);
        let limits = Limits { stop_at_first: true, executions: 1_000_000, ..Limits::default() };
        let model = Model::new(&litmus.program, &litmus.setting(strategy, rules, memory));
        let result = model.explore(Search::Exhaustive(Reduction::Full), limits, |_| {});
        if !result.never_met.is_empty() || !kinds(&result).contains(&kind) {
            let (found, never_met) = (kinds(&result), &result.never_met);
            let at = format!("{label} {how:?} {test} {strategy} {rules} {memory}");
            wrong.push(format!("{at}: {found:?}, not {kind}; never met: {never_met:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same programs with everything in its place. Those that the suite has without a bug have a test of their own.
#[test]
fn with_all_orders_nothing_is_found() {
    // All executions of this one would take minutes.
    const TOO_LARGE: &str = "asid-while-flushed";
    let clean: BTreeSet<String> =
        bundled().into_iter().filter(|litmus| !litmus.is_mutation()).map(|litmus| litmus.program.name).collect();
    let mut done = BTreeSet::new();
    for &(label, _, (test, strategy, rules, memory), _) in CAUGHT {
        assert!(strategy.claims(rules), "{label}: what is found under {strategy} on {rules} may be found anyway");
        if test == TOO_LARGE || clean.contains(test) || !done.insert((test, strategy, rules, memory)) {
            continue;
        }
        let litmus = Litmus { dropped: vec![], relaxed: vec![], mutant: None, ..named(test) };
        let result = explore(&litmus, &litmus.setting(strategy, rules, memory));
        let name = format!("{label} {test} {strategy} {rules} {memory}");
        assert_eq!((kinds(&result), result.complete), (BTreeSet::new(), true), "{name}");
    }
}

#[test]
fn what_is_had_twice_is_not_missed() {
    for &(label, how, (test, strategy, rules, memory), why) in HAD_TWICE {
        let litmus = without(label, how, test);
        let result = explore(&litmus, &litmus.setting(strategy, rules, memory));
        let name = format!("{label} {how:?} {test} {strategy} {rules} {memory} ({why})");
        assert!(result.complete && result.never_met.is_empty(), "{name}");
        assert_eq!(kinds(&result), BTreeSet::new(), "{name}");
    }
}

/// What only `weak` shows is missed where all CPUs see stores in one order.
#[test]
fn answers_and_drops_are_missed_under_tso() {
    for (label, strategy, rules) in
        [("smp.ack", Refcount, Ipi), ("smp.ack", Shootdown, Broadcast), ("mm.mmdrop", Refcount, IpiUnlazy)]
    {
        let litmus = without(label, Relax, "lazy-then-other-user");
        let result = explore(&litmus, &litmus.setting(strategy, rules, Tso));
        assert_eq!((kinds(&result), result.complete), (BTreeSet::new(), true), "{label} {rules}");
    }
}
