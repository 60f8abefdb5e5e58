//! Where tasks roam the invariants are checked as anywhere, and each that can break there does when something is planted.
//!
//! They are more than those of Marinas' `ctxsw.tla`. Its `MMInv` (no users: no task has it as mm; no references: nobody has it as
//! `active_mm`; users: references) is I2, I4 and I5, with what comes of it: a use after free, a root that the hardware is on. Its
//! `SchedInv` (nothing on the run queue is running; no CPU runs two tasks) is the machine's own: a task has one stack and one place,
//! and who switches to one that runs elsewhere is told so. Its `TypeInv` is Rust's. I8 needs hotplug, I9 and I10 user memory, I12 an
//! interrupt that puts: of these roaming tasks have none. I4 and I11 are the caller's to break, and tests with scripts do.

use lazytlb_machine::{Exploration, Limits, MemoryModel, Reduction, Search};
use lazytlb_sched_model::Rules::{self, Broadcast, Ipi};
use lazytlb_sched_model::Strategy::{
    self, HazardConvert, HazardDeadline, HazardIpi, Refcount, RefcountDeferred, RefcountPerCpu, Shootdown,
    ShootdownBatched,
};
use lazytlb_sched_model::{Litmus, Model};

/// Two CPUs, two tasks, two address spaces, and a line of the header.
fn explore(planted: &str, strategy: Strategy, rules: Rules, executions: u64) -> Exploration {
    let text = format!(
        "lazytlb-litmus 1\nname roaming\n{planted}\nmachine {rules}\nroam\nmm A B\nkthread one\nkthread two\n\ncpu idle | cpu idle\n"
    );
    let litmus = Litmus::parse(&text).unwrap_or_else(|error| panic!("{text}: {error:?}"));
    let model = Model::new(&litmus.program, &litmus.setting(strategy, rules, MemoryModel::Sc));
    let limits = Limits { stop_at_first: false, executions, ..Limits::default() };
    model.explore(Search::Exhaustive(Reduction::Full), limits, |_| {})
}

/// What is planted, and what is found among the first executions. Without it nothing is: `roam*.litmus`, and `litmus-large`.
const BROKEN: &[(&str, Strategy, Rules, &str)] = &[
    ("mutant stays-queued", Refcount, Ipi, "wrong-context: "),
    // The tables are freed though a CPU is on them.
    ("mutant drop-before-load", RefcountPerCpu, Broadcast, "hardware-reaches: I1: "),
    // Another task runs between the two halves of an exec.
    ("drop paths.exec_mmap", Refcount, Ipi, "invariant: I2: "),
    ("drop hazard.unpublish", HazardConvert, Broadcast, "invariant: I3: "),
    // A switch to a task without an mm takes no reference (`ctxsw.tla`: grab_mm).
    ("drop mm.mmgrab", Refcount, Broadcast, "invariant: I5: "),
    ("drop mm.mmgrab", Refcount, Broadcast, "dereferences: "),
    ("drop mm_switch.mask_set", Shootdown, Broadcast, "invariant: I6: "),
    ("drop hazard.publish", HazardConvert, Broadcast, "invariant: I7: "),
    ("mutant looks-too-soon", HazardIpi, Broadcast, "invariant: I7: "),
    // What the work of threads needs: that somebody is told that mms wait, and that a turn is asked for.
    ("drop waiting.push", HazardDeadline, Ipi, "assertion: "),
    ("drop waiting.turn", HazardDeadline, Ipi, "leak: "),
    ("drop waiting.push", RefcountDeferred, Ipi, "assertion: "),
    // What is borrowed where it waits.
    ("drop mm.mmgrab", RefcountDeferred, Ipi, "dereferences: "),
    ("drop mm_switch.mask_set", ShootdownBatched, Broadcast, "invariant: I6: "),
    ("drop hazard.publish", HazardDeadline, Ipi, "invariant: I7: "),
];

#[test]
fn what_is_planted_is_found_where_tasks_roam() {
    const EXECUTIONS: u64 = 60_000;
    for &(planted, strategy, rules, expected) in BROKEN {
        let result = explore(planted, strategy, rules, EXECUTIONS);
        let found: Vec<String> = result.found.iter().map(|found| found.verdict.to_string()).collect();
        let what = format!("{planted} under {strategy} on {rules}");
        assert!(found.iter().any(|found| found.starts_with(expected)), "{what}: {found:?}");
    }
}
