//! Tasks that share CPUs: a timer takes the CPU from one before any step, and the reduction tells apart what they touch.

use std::collections::BTreeSet;
use std::rc::Rc;

use lazytlb_core::memory::{AtomicWord, Label, Ordering::*};
use lazytlb_machine::{Config, Limits, Machine, MemoryModel, ObjectKind, Reduction, Search, SimWord};
use lazytlb_programs::leak;

const ALL: Limits = Limits { executions: 1_000_000, time: core::time::Duration::MAX, stop_at_first: false };

/// Two tasks on one CPU; the second comes when the timer says so, and runs to its end. Each is given a shared word.
fn two_tasks(
    memory: MemoryModel,
    first: impl Fn(&SimWord<usize>) + 'static,
    second: impl Fn(&SimWord<usize>) + 'static,
) -> Machine {
    let machine = Machine::new(Config { cpus: 1, bytes: 8 << 10, ticks: true, memory, ..Config::default() });
    let word: &'static SimWord<usize> = leak(machine.place("word", ObjectKind::Other, AtomicWord::new(0)));
    let came: &'static SimWord<usize> = leak(machine.place("came", ObjectKind::Other, AtomicWord::new(0)));
    let one = machine.add_task("first", move || {
        Machine::with(|machine| machine.tick(true));
        // A task's first step comes with its start.
        came.load(Relaxed);
        first(word);
        Machine::with(|machine| {
            machine.irq_save(Label::NONE);
            machine.tick(false);
            machine.irq_restore(true);
        });
    });
    let two = machine.add_task("second", move || {
        Machine::with(|machine| {
            machine.tick(false);
            came.poke(1);
            machine.irq_restore(true);
        });
        second(word);
        Machine::with(|machine| {
            machine.irq_save(Label::NONE);
            machine.switch_to(one);
        });
    });
    machine.boot(one, true);
    machine.on_irq_exit(move |vector| {
        assert_eq!(vector, Machine::TICK);
        Machine::with(|machine| machine.switch_to(two));
    });
    machine.outcome(|_, values| values.extend([word.peek() as u64, came.peek() as u64]));
    machine
}

fn outcomes(machine: &Machine, reduction: Reduction) -> BTreeSet<Vec<u64>> {
    let result = machine.explore(Search::Exhaustive(reduction), ALL);
    assert!(result.complete && result.found.is_empty(), "{:?}", result.found);
    result.outcomes.into_iter().map(|(_, values)| values).collect()
}

fn add(by: usize) -> impl Fn(&SimWord<usize>) {
    move |word| word.store(word.load(Relaxed) + by, Relaxed)
}

/// Nobody but the tasks of one CPU touches the word, and still its steps are choice points.
#[test]
fn a_tick_comes_between_load_and_store() {
    for memory in [MemoryModel::Sc, MemoryModel::Tso] {
        let machine = two_tasks(memory, add(1), add(10));
        // Not at all; before the load or after the store; in between.
        let expected = BTreeSet::from([vec![1, 0], vec![11, 1], vec![1, 1]]);
        assert_eq!(outcomes(&machine, Reduction::None), expected, "{memory}");
        assert_eq!(outcomes(&machine, Reduction::Full), expected, "{memory}");
    }
}

#[test]
fn none_comes_with_interrupts_or_preemption_off() {
    let irqs_off = |word: &SimWord<usize>| {
        let were_on = Machine::with(|machine| machine.irq_save(Label::NONE));
        add(1)(word);
        Machine::with(|machine| machine.irq_restore(were_on));
    };
    let preemption_off = |word: &SimWord<usize>| {
        Machine::with(Machine::preempt_disable);
        add(1)(word);
        Machine::with(Machine::preempt_enable);
    };
    let expected = BTreeSet::from([vec![1, 0], vec![11, 1]]);
    for first in [Rc::new(irqs_off) as Rc<dyn Fn(&SimWord<usize>)>, Rc::new(preemption_off)] {
        let machine = two_tasks(MemoryModel::Sc, move |word| first(word), add(10));
        assert_eq!(outcomes(&machine, Reduction::None), expected);
        assert_eq!(outcomes(&machine, Reduction::Full), expected);
    }
}

/// What a scheduler picks from its queue is one step, and all of it is explored.
#[test]
fn an_update_chooses() {
    let machine = two_tasks(
        MemoryModel::Sc,
        |word| {
            Machine::with(|machine| machine.update(word, |value| value + 1 + usize::from(machine.choose(2))));
        },
        |word| {
            Machine::with(|machine| machine.update(word, |value| value * 10));
        },
    );
    let expected = BTreeSet::from([vec![1, 0], vec![2, 0], vec![10, 1], vec![20, 1], vec![1, 1], vec![2, 1]]);
    assert_eq!(outcomes(&machine, Reduction::None), expected);
    assert_eq!(outcomes(&machine, Reduction::Full), expected);
}

/// A freed object leaves no trace but that it is free, so that who allocates and frees comes back to a state.
#[test]
fn a_loop_that_allocates_ends() {
    let machine = Machine::new(Config { cpus: 1, bytes: 8 << 10, ticks: true, ..Config::default() });
    let cache = machine.create_cache("object", ObjectKind::Other, 2, |_| SimWord::<usize>::new(0));
    let task = machine.add_task("task", move || {
        loop {
            let at = core::panic::Location::caller();
            Machine::with(|machine| {
                machine.checkpoint(0, true);
                let objects = [0, 1].map(|_| machine.alloc(cache, at).unwrap());
                for object in objects {
                    // SAFETY: just allocated, in the arena.
                    unsafe { object.as_ref() }.store(usize::from(machine.choose(3)), Relaxed);
                }
                // In either order.
                let first = usize::from(machine.choose(2));
                machine.free(objects[first], at);
                machine.free(objects[1 - first], at);
            });
        }
    });
    machine.boot(task, true);
    let result = machine.explore(Search::Exhaustive(Reduction::Full), ALL);
    assert!(result.complete, "{} executions", result.executions);
    assert!(result.states < 100, "{} states", result.states);
}

/// What lies between disabling preemption and enabling it may be no step at all.
#[test]
fn preemption_that_is_disabled_for_nothing_is_gone_on_from() {
    let machine = Machine::new(Config { cpus: 1, bytes: 8 << 10, ticks: true, ..Config::default() });
    let word: &'static SimWord<usize> = leak(machine.place("word", ObjectKind::Other, AtomicWord::new(0)));
    let task = machine.add_task("task", move || {
        Machine::with(|machine| machine.tick(true));
        word.load(Relaxed);
        for _ in 0..2 {
            Machine::with(Machine::preempt_disable);
            Machine::with(Machine::preempt_enable);
        }
        word.store(1, Relaxed);
        Machine::with(|machine| {
            machine.irq_save(Label::NONE);
            machine.tick(false);
        });
    });
    machine.boot(task, true);
    machine.outcome(|_, values| values.push(word.peek() as u64));
    assert_eq!(outcomes(&machine, Reduction::Full), BTreeSet::from([vec![1]]));
}
