//! Two tasks that switch for ever on one CPU are a finite space: the search closes the loop, and reaches what a model of
//! explicit states, written by hand, reaches.

use std::collections::{BTreeSet, VecDeque};

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::*};
use lazytlb_machine::{Config, Limits, Machine, MemoryModel, ObjectKind, Reduction, Search, Sim};
use lazytlb_programs::leak;

/// What `x` counts to before it is zero again.
const MODULUS: usize = 3;

/// CPU 0 has two tasks. Each counts `x` up, and then either ends or switches to the other. CPU 1 copies `x` to `y`
/// `copies` times. The outcome is `x`, `y`, and who ended.
fn ping_pong(copies: usize, memory: MemoryModel) -> Machine {
    struct Words {
        x: <Sim as Memory>::AtomicUsize,
        y: <Sim as Memory>::AtomicUsize,
        ended: <Sim as Memory>::AtomicUsize,
    }
    let machine = Machine::new(Config { cpus: 2, memory, bytes: 4 << 10, store_buffer: 2, ..Config::default() });
    let zero = || AtomicWord::new(0);
    let words: &'static Words =
        leak(machine.place("words", ObjectKind::Other, Words { x: zero(), y: zero(), ended: zero() }));
    for me in 0..2 {
        let task = machine.add_task(["ping", "pong"][me], move || {
            loop {
                Machine::with(|machine| machine.checkpoint(0, true));
                words.x.store((words.x.load(Relaxed) + 1) % MODULUS, Relaxed);
                if Machine::with(|machine| machine.choose(2)) == 0 {
                    words.ended.store(me + 1, Relaxed);
                    return;
                }
                Machine::with(|machine| machine.switch_to(machine.task(1 - me)));
            }
        });
        if me == 0 {
            machine.boot(task, true);
        }
    }
    let copier = machine.add_task("copier", move || {
        for _ in 0..copies {
            words.y.store(words.x.load(Relaxed), Relaxed);
        }
    });
    machine.boot(copier, true);
    machine.outcome(move |_, values| {
        values.extend([&words.x, &words.y, &words.ended].map(|word| word.peek() as u64));
    });
    machine
}

/// The same by hand, under sequential consistency: all states by breadth first.
fn by_hand(copies: usize) -> BTreeSet<Vec<u64>> {
    /// Where CPU 0 is: before its load, between load and store, before its choice, at its end.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum At {
        Load,
        Store(usize),
        Choice,
        Ended,
    }
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    struct State {
        task: usize,
        at: At,
        x: usize,
        y: usize,
        copied: usize,
        /// What the copier has loaded and not stored yet.
        loaded: Option<usize>,
    }
    let start = State { task: 0, at: At::Load, x: 0, y: 0, copied: 0, loaded: None };
    let (mut seen, mut queue, mut outcomes) = (BTreeSet::from([start]), VecDeque::from([start]), BTreeSet::new());
    while let Some(state) = queue.pop_front() {
        let mut next = match state.at {
            At::Load => vec![State { at: At::Store(state.x), ..state }],
            At::Store(old) => vec![State { x: (old + 1) % MODULUS, at: At::Choice, ..state }],
            At::Choice => {
                vec![State { at: At::Ended, ..state }, State { at: At::Load, task: 1 - state.task, ..state }]
            }
            At::Ended => vec![],
        };
        match state.loaded {
            Some(value) => next.push(State { y: value, copied: state.copied + 1, loaded: None, ..state }),
            None if state.copied < copies => next.push(State { loaded: Some(state.x), ..state }),
            None => {}
        }
        if next.is_empty() {
            outcomes.insert([state.x, state.y, state.task + 1].map(|value| value as u64).to_vec());
        }
        queue.extend(next.into_iter().filter(|&state| seen.insert(state)));
    }
    outcomes
}

#[test]
fn an_endless_loop_is_a_finite_space() {
    for copies in 0..=2 {
        let expected = by_hand(copies);
        for memory in MemoryModel::ALL {
            for reduction in [Reduction::States, Reduction::Full] {
                let limits = Limits { stop_at_first: false, executions: 200_000, ..Limits::default() };
                let result = ping_pong(copies, memory).explore(Search::Exhaustive(reduction), limits);
                assert!(result.complete, "{copies} {memory} {reduction:?}: {} executions", result.executions);
                assert!(result.found.is_empty(), "{:?}", result.found);
                let outcomes: BTreeSet<Vec<u64>> = result.outcomes.into_iter().map(|(_, values)| values).collect();
                // One copier that only delays its own stores sees nothing under TSO that it does not see under SC.
                assert_eq!(outcomes, expected, "{copies} {memory} {reduction:?}");
            }
        }
    }
}

/// What comes in while a task waits may wait itself, before and after what the task waits for has changed: it is woken all
/// the same.
#[test]
fn an_interrupt_that_waits_itself_takes_no_wake_up_away() {
    type Word = <Sim as Memory>::AtomicUsize;
    for memory in MemoryModel::ALL {
        let machine = Machine::new(Config { cpus: 2, memory, bytes: 4 << 10, ..Config::default() });
        let place = |name| -> &'static Word { leak(machine.place(name, ObjectKind::Other, AtomicWord::new(0))) };
        let (asked, lock) = (place("asked"), place("lock"));
        let locked = || {
            Sim.spin_until(|| lock.compare_exchange(0, 1, Acquire, Relaxed).ok());
            lock.store(0, Release);
        };
        let waiter = machine.add_task("waiter", move || Sim.spin_until(|| (asked.load(Acquire) == 1).then_some(())));
        machine.boot(waiter, true);
        let asker = machine.add_task("asker", move || {
            Machine::with(|machine| machine.send_ipi(1, 0));
            asked.store(1, Release);
            locked();
        });
        machine.boot(asker, true);
        machine.on_interrupt(move |_| locked());
        let exploration = machine.explore(Search::Exhaustive(Reduction::Full), Limits::default());
        assert_eq!(exploration.found, [], "{memory}");
        assert!(exploration.complete);
    }
}
