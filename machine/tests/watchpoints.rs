//! A model is told of what touches the words it watches, as part of the step, and can look at what others write.

use core::time::Duration;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Ordering::*};
use lazytlb_machine::{Config, Kind, Limits, Machine, MemoryModel, ObjectKind, Reduction, Search, Seen, SimWord};
use lazytlb_programs::leak;

const ALL: Limits = Limits { executions: 100_000, time: Duration::MAX, stop_at_first: false };

fn machine(cpus: usize, memory: MemoryModel) -> Machine {
    Machine::new(Config { cpus, memory, bytes: 8 << 10, ..Config::default() })
}

fn word(machine: &Machine, name: &'static str) -> &'static SimWord<usize> {
    leak(machine.place(name, ObjectKind::Other, AtomicWord::new(0)))
}

/// What is found, all of it, in words.
fn found(machine: &Machine) -> Vec<String> {
    let result = machine.explore(Search::Exhaustive(Reduction::Full), ALL);
    assert!(result.complete);
    let mut found: Vec<String> = result.found.iter().map(|found| found.verdict.to_string()).collect();
    found.sort_unstable();
    found
}

/// A store is told when the CPU does it, with what the CPU itself would have read; a look at its own words sees it, though it
/// may not be in memory yet.
#[test]
fn stores_are_told_as_their_cpu_sees_them() {
    for memory in MemoryModel::ALL {
        let machine = machine(1, memory);
        let (first, other) = (word(&machine, "first"), word(&machine, "other"));
        let task = machine.add_task("task", move || {
            first.store(1, Relaxed);
            first.store(2, Relaxed);
            first.store(2, Relaxed);
            other.store(7, Relaxed);
            first.fetch_add_full(1, Label::NONE);
            first.load(Relaxed);
        });
        machine.watch_accesses(5, || first.load(Relaxed));
        machine.on_seen(move |machine, seen| {
            let own = machine.as_this_cpu_sees(|| first.load(Relaxed));
            machine.fail(Kind::Invariant, format!("{seen:?}, and it sees {own}"));
        });
        machine.boot(task, true);
        let told = [
            "invariant: Loaded { tag: 5 }, and it sees 3",
            "invariant: Stored { tag: 5, before: 0, after: 1 }, and it sees 1",
            "invariant: Stored { tag: 5, before: 1, after: 2 }, and it sees 2",
            "invariant: Stored { tag: 5, before: 2, after: 3 }, and it sees 3",
        ];
        assert_eq!(found(&machine), told, "{memory}");
    }
}

#[test]
fn interrupts_on_is_told() {
    let machine = machine(1, MemoryModel::Sc);
    let task = machine.add_task("task", || {
        let outer = Machine::with(|machine| machine.irq_save(Label::NONE));
        let inner = Machine::with(|machine| machine.irq_save(Label::NONE));
        Machine::with(|machine| machine.irq_restore(inner));
        Machine::with(|machine| machine.irq_restore(outer));
    });
    machine.on_seen(|machine, seen| {
        assert_eq!(seen, Seen::InterruptsOn);
        assert!(machine.irqs_are_on(0) && !machine.is_in_irq(0));
        machine.fail(Kind::Invariant, "on");
    });
    machine.boot(task, true);
    assert_eq!(found(&machine), ["invariant: on"]);
}

/// A check in a step that nobody else can notice finds what others can do right before it, if it looks by a step of its own;
/// and not otherwise, which is why it must.
#[test]
fn others_can_go_before_a_look_that_is_a_step() {
    let in_between = |steps: bool| {
        let machine = machine(2, MemoryModel::Sc);
        let (mine, shared, go) = (word(&machine, "mine"), word(&machine, "shared"), word(&machine, "go"));
        let watcher = machine.add_task("watcher", move || {
            go.store(1, Release);
            mine.store(1, Relaxed);
        });
        let other = machine.add_task("other", move || {
            if go.load(Acquire) == 1 {
                shared.store(1, Relaxed);
            }
        });
        machine.watch_stores(0, || mine.load(Relaxed));
        let at = Machine::words_read(|| shared.load(Relaxed))[0];
        machine.on_seen(move |machine, _| {
            let looked = if steps { machine.look_step(at) } else { machine.quietly(|| shared.load(Relaxed)) };
            if looked == 1 {
                machine.fail(Kind::Invariant, "in between");
            }
        });
        machine.boot(watcher, true);
        machine.boot(other, true);
        found(&machine)
    };
    assert_eq!(in_between(true), ["invariant: in between"]);
    assert!(in_between(false).is_empty());
}
