//! Each verdict of the machine, by the smallest program that deserves it; and the contexts that code can be in.

use core::panic::Location;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use lazytlb_core::memory::{AtomicWord, Label, Memory, Ordering::*};
use lazytlb_core::platform::Context;
use lazytlb_machine::{Config, Kind, Limits, Machine, MemoryModel, ObjectKind, Reduction, Search, Sim, SimWord};
use lazytlb_programs::leak;

const ALL: Limits = Limits { executions: 100_000, time: core::time::Duration::MAX, stop_at_first: false };

fn machine(cpus: usize) -> Machine {
    Machine::new(Config { cpus, bytes: 8 << 10, max_steps: 500, memory: MemoryModel::Tso, ..Config::default() })
}

fn run(machine: &Machine) -> Vec<Kind> {
    let result = machine.explore(Search::Exhaustive(Reduction::Full), ALL);
    assert!(result.complete);
    lazytlb_programs::kinds(&result)
}

/// What one CPU that does `body` is found guilty of.
fn alone(body: impl Fn() + 'static) -> Vec<Kind> {
    let machine = machine(1);
    let task = machine.add_task("task", body);
    machine.boot(task, true);
    run(&machine)
}

#[test]
fn too_long() {
    let machine = machine(1);
    let word: &'static SimWord<usize> = leak(machine.place("word", ObjectKind::Other, AtomicWord::new(0)));
    let task = machine.add_task("task", move || {
        loop {
            word.store(word.load(Relaxed).wrapping_add(1), Relaxed);
        }
    });
    machine.boot(task, true);
    assert_eq!(run(&machine), [Kind::TooLong]);
}

/// A loop that comes back to where it was ends no execution: that is no pass, unless the program is to go on for ever. One
/// task goes on for ever where it sees what the other has stored.
#[test]
fn no_end_from_some_state_on() {
    for memory in [MemoryModel::Sc, MemoryModel::Tso, MemoryModel::Weak] {
        for (ends, sees, expected) in [(true, 1, vec![Kind::TooLong]), (false, 1, vec![]), (true, 2, vec![])] {
            let machine =
                Machine::new(Config { cpus: 2, bytes: 8 << 10, max_steps: 500, memory, ends, ..Config::default() });
            let words =
                || -> &'static SimWord<usize> { leak(machine.place("word", ObjectKind::Other, AtomicWord::new(0))) };
            let (stored, counted) = (words(), words());
            let stores = machine.add_task("stores", move || stored.store(1, Relaxed));
            machine.boot(stores, true);
            let loops = machine.add_task("loops", move || {
                while stored.load(Relaxed) == sees {
                    Machine::with(|machine| machine.checkpoint(0, true));
                    counted.store(counted.load(Relaxed) ^ 1, Relaxed);
                }
            });
            machine.boot(loops, true);
            let result = machine.explore(Search::Exhaustive(Reduction::Full), ALL);
            assert!(result.complete && !result.outcomes.is_empty());
            assert_eq!(lazytlb_programs::kinds(&result), expected, "{memory}");
            for found in &result.found {
                let recording = machine.replay(&found.schedule, found.schedule.program).unwrap();
                assert_eq!(recording.verdicts[0].kind, Kind::TooLong);
            }
        }
    }
}

#[test]
fn panics() {
    let machine = machine(1);
    let task = machine.add_task("task", || panic!("on {}", "purpose"));
    machine.boot(task, true);
    let result = machine.explore(Search::Exhaustive(Reduction::Full), ALL);
    assert_eq!(lazytlb_programs::kinds(&result), [Kind::Panic]);
    let message = result.found[0].verdict.to_string();
    assert!(message.contains("on purpose, at") && message.contains("verdicts.rs"), "{message}");
}

#[test]
fn deadlocks() {
    assert_eq!(alone(|| Sim.spin_until(|| None)), [Kind::Deadlock]);
    // An interrupt to a CPU that is offline is lost, and who waits for it waits for ever.
    let machine = machine(2);
    let word: &'static SimWord<usize> = leak(machine.place("word", ObjectKind::Other, AtomicWord::new(0)));
    let caller = machine.add_task("caller", move || {
        Machine::with(|machine| machine.send_ipi(0b10, 0));
        Sim.spin_until(|| (word.load(Acquire) == 1).then_some(()));
    });
    let target = machine.add_task("target", || {});
    machine.on_interrupt(move |_| word.store(1, Release));
    machine.boot(caller, true);
    machine.boot(target, false);
    assert_eq!(run(&machine), [Kind::Deadlock]);
}

#[test]
fn contexts() {
    let sleeps = || Machine::with(Machine::might_sleep);
    assert_eq!(alone(sleeps), []);
    assert_eq!(
        alone(move || {
            Machine::with(Machine::preempt_disable);
            sleeps();
        }),
        [Kind::SleepingWhileAtomic]
    );
    assert_eq!(
        alone(move || {
            Machine::with(|machine| machine.irq_save(Label::NONE));
            sleeps();
        }),
        [Kind::SleepingWhileAtomic]
    );
    assert_eq!(alone(|| Machine::with(Machine::preempt_enable)), [Kind::WrongContext]);
}

#[test]
fn a_task_runs_on_one_cpu() {
    let machine = machine(2);
    let first = machine.add_task("first", || {});
    let second = machine.add_task("second", || Machine::with(|machine| machine.switch_to(machine.task(0))));
    machine.boot(first, true);
    machine.boot(second, true);
    assert_eq!(run(&machine), [Kind::WrongContext]);
}

#[test]
fn bad_memory() {
    for (what, expected) in
        [(0, Kind::DoubleFree), (1, Kind::InvalidFree), (2, Kind::Dereferences), (3, Kind::OutOfBounds)]
    {
        let machine = machine(1);
        let cache = machine.create_cache("object", ObjectKind::Other, 1, |_| [AtomicWord::new(0), AtomicWord::new(0)]);
        let object: core::ptr::NonNull<[SimWord<usize>; 2]> = machine.alloc_at_setup(cache);
        let task = machine.add_task("task", move || {
            let free = |object| Machine::with(|machine| machine.free(object, Location::caller()));
            // SAFETY: the arena stays.
            let words = unsafe { object.as_ref() };
            match what {
                0 => {
                    free(object);
                    free(object);
                }
                // SAFETY: inside the object.
                1 => free(unsafe { object.byte_add(8) }),
                2 => {
                    free(object);
                    words[0].load(Relaxed);
                }
                _ => {
                    // SAFETY: behind the object, and still in the arena.
                    let behind = unsafe { object.add(1) }.cast::<SimWord<usize>>();
                    // SAFETY: as above.
                    let behind = unsafe { behind.as_ref() };
                    behind.load(Relaxed);
                }
            }
        });
        machine.boot(task, true);
        assert_eq!(run(&machine), [expected]);
    }
}

/// Where each handler runs, as it is told: task, interrupt, softirq, non-maskable interrupt.
#[test]
fn handlers_know_where_they_run() {
    let seen: Rc<RefCell<Vec<(&str, Context)>>> = Rc::default();
    let machine = machine(1);
    let note = |what: &'static str| {
        let seen = Rc::clone(&seen);
        move || {
            let context = Machine::with(Machine::context);
            if !seen.borrow().contains(&(what, context)) {
                seen.borrow_mut().push((what, context));
            }
        }
    };
    let (in_irq, in_nmi, in_softirq, in_task) = (note("irq"), note("nmi"), note("softirq"), note("task"));
    let word: &'static SimWord<usize> = leak(machine.place("word", ObjectKind::Other, AtomicWord::new(0)));
    machine.on_interrupt(move |_| {
        in_irq();
        word.store(1, Relaxed);
    });
    machine.on_nmi(move |_| {
        in_nmi();
        word.store(2, Relaxed);
    });
    machine.on_irq_exit(move |_| {
        if !Machine::with(Machine::context).in_softirq {
            Machine::with(|machine| machine.softirq(&in_softirq));
        }
    });
    let task = machine.add_task("task", move || {
        Machine::with(|machine| machine.raise(0, 3, false));
        Machine::with(|machine| machine.raise(0, 0, true));
        in_task();
    });
    machine.boot(task, true);
    assert_eq!(run(&machine), []);
    let none =
        Context { in_nmi: false, in_hardirq: false, in_softirq: false, preempt_disabled: false, irqs_disabled: false };
    let seen = seen.borrow();
    let of =
        |what: &str| seen.iter().filter(|(name, _)| *name == what).map(|&(_, context)| context).collect::<Vec<_>>();
    assert_eq!(of("task"), [none]);
    assert_eq!(of("irq"), [Context { in_hardirq: true, irqs_disabled: true, ..none }]);
    assert_eq!(of("softirq"), [Context { in_softirq: true, ..none }]);
    // The non-maskable one comes anywhere, in the others as well.
    let nmi = Context { in_nmi: true, irqs_disabled: true, ..none };
    for expected in [nmi, Context { in_hardirq: true, ..nmi }, Context { in_softirq: true, ..nmi }] {
        assert!(of("nmi").contains(&expected), "{expected:?} is not among {:?}", of("nmi"));
    }
}

/// An interrupt section keeps interrupts out, and no non-maskable one.
#[test]
fn only_an_nmi_comes_in_between() {
    for nmi in [false, true] {
        let machine = machine(1);
        let words: &'static [SimWord<usize>; 2] =
            leak(machine.place("words", ObjectKind::Other, [AtomicWord::new(0), AtomicWord::new(0)]));
        let count = move || words[0].store(words[0].load(Relaxed) + 1, Relaxed);
        machine.on_interrupt(move |_| count());
        machine.on_nmi(move |_| count());
        let task = machine.add_task("task", move || {
            Machine::with(|machine| machine.raise(0, 1, nmi));
            let were_on = Machine::with(|machine| machine.irq_save(Label::NONE));
            let first = words[0].load(Relaxed);
            words[1].store(words[0].load(Relaxed) - first, Relaxed);
            Machine::with(|machine| machine.irq_restore(were_on));
        });
        machine.boot(task, true);
        machine.outcome(move |_, values| values.push(words[1].peek() as u64));
        let result = machine.explore(Search::Exhaustive(Reduction::Full), ALL);
        let values: Vec<Vec<u64>> = result.outcomes.into_iter().map(|(_, values)| values).collect();
        let expected: &[Vec<u64>] = if nmi { &[vec![0], vec![1]] } else { &[vec![0]] };
        assert_eq!(values, expected, "nmi: {nmi}");
    }
}

/// A verdict in the middle of what is quiet ends that execution, and no other is quiet for it.
#[test]
fn a_verdict_ends_what_is_quiet() {
    let machine = Machine::new(Config { cpus: 2, bytes: 4 << 10, ..Config::default() });
    let word: &'static <Sim as Memory>::AtomicUsize =
        leak(machine.place("word", ObjectKind::Other, AtomicWord::new(0)));
    let fails = machine.add_task("fails", move || {
        if Machine::with(|machine| machine.choose(2)) == 0 {
            Machine::with(|machine| machine.quietly(|| machine.fail(Kind::Assertion, "in the middle")));
        }
        word.store(word.load(Relaxed) + 1, Relaxed);
    });
    machine.boot(fails, true);
    let counts = machine.add_task("counts", move || word.store(word.load(Relaxed) + 1, Relaxed));
    machine.boot(counts, true);
    machine.outcome(move |_, values| values.push(word.peek() as u64));
    let exploration = machine.explore(Search::Exhaustive(Reduction::Full), ALL);
    let counted: BTreeSet<Vec<u64>> = exploration
        .outcomes
        .into_iter()
        .filter(|(verdicts, _)| verdicts.is_empty())
        .map(|(_, values)| values)
        .collect();
    assert_eq!(counted, [vec![1], vec![2]].into(), "one of the two can be lost");
}
