//! What time it is makes no difference where times are only compared, nor what a question has read on its way.

mod common;

use common::{placed, takes_a_state_for_another};
use lazytlb_core::memory::{AtomicInt, AtomicWord, Memory, Ordering::*};
use lazytlb_machine::{Config, Exploration, Limits, Machine, ObjectKind, Reach, Reduction, Search, Sim, SimWord};

const LIMITS: Limits = Limits { stop_at_first: false, executions: 50_000, time: core::time::Duration::MAX };

fn words<const N: usize>(machine: &Machine) -> [&'static SimWord<usize>; N] {
    let words = placed(machine.place_slice("words", ObjectKind::Other, N, |_| AtomicWord::new(0)));
    core::array::from_fn(|index| &words[index])
}

/// One CPU makes an epoch grow for ever. The other notes it down, and how much older it is by then, as far as that is at
/// most 2.
fn explore(reduction: Reduction, reach: Option<usize>, looks_at_the_clock: bool) -> Exploration {
    let machine = Machine::new(Config { cpus: 2, ticks: true, ends: false, max_steps: 2_000, ..Config::default() });
    let [epoch, noted, seen] = words(&machine);
    let grows = machine.add_task("grows", move || {
        loop {
            Machine::with(|machine| machine.checkpoint(0, true));
            epoch.fetch_add(1, Relaxed);
            // So that the other's stores are ones that somebody can notice.
            seen.load(Relaxed);
            noted.load(Relaxed);
        }
    });
    let notes = machine.add_task("notes", move || {
        loop {
            Machine::with(|machine| machine.checkpoint(0, true));
            let now = epoch.load(Relaxed);
            if looks_at_the_clock && now == 1 {
                seen.store(1, Relaxed);
            }
            noted.store(now, Relaxed);
            let age = epoch.load(Relaxed).wrapping_sub(now);
            seen.store(age.min(2), Relaxed);
        }
    });
    machine.boot(grows, true);
    machine.boot(notes, true);
    if let Some(reach) = reach {
        let address = |word: &SimWord<usize>| core::ptr::from_ref(word).addr();
        machine.counts_from(address(epoch), &[address(noted)], Reach { ahead: reach, behind: reach });
    }
    machine.explore(Search::Exhaustive(reduction), LIMITS)
}

#[test]
fn an_epoch_that_grows_has_an_end() {
    assert!(!explore(Reduction::Full, None, false).complete);
    let counted = explore(Reduction::Full, Some(3), false);
    assert!(counted.complete && counted.found.is_empty(), "{:?}", counted.found);
    let wider = explore(Reduction::Full, Some(4), false);
    assert!(wider.complete && wider.states > counted.states, "{} {}", wider.states, counted.states);
}

#[test]
fn who_can_tell_one_time_from_another_is_noticed() {
    assert!(!takes_a_state_for_another(&explore(Reduction::Named, Some(3), false)));
    assert!(takes_a_state_for_another(&explore(Reduction::Named, Some(3), true)));
}

/// A CPU asks whether a number is odd that another counts up.
fn ask(by_question: bool, takes_it_along: bool) -> Exploration {
    let machine = Machine::new(Config { cpus: 2, ..Config::default() });
    let [number, one, other] = words(&machine);
    let counts = machine.add_task("counts", move || {
        for value in 1..5 {
            number.store(value, Relaxed);
            // So that the other's store is one that somebody can notice.
            one.load(Relaxed);
            other.load(Relaxed);
        }
    });
    let asks = machine.add_task("asks", move || {
        let mut read = 0;
        let mut is_odd = || {
            read = number.load(Relaxed);
            read % 2 == 1
        };
        let odd = if by_question { Sim.outcome_of(&mut is_odd) } else { is_odd() };
        let which = if takes_it_along { read > 2 } else { odd };
        (if which { one } else { other }).store(1, Relaxed);
    });
    machine.boot(counts, true);
    machine.boot(asks, true);
    machine.outcome(move |_, values| values.extend([one, other].map(|word| word.peek() as u64)));
    machine.explore(Search::Exhaustive(Reduction::Named), LIMITS)
}

#[test]
fn what_a_question_has_read_is_forgotten() {
    let (plain, asked) = (ask(false, false), ask(true, false));
    assert!(plain.complete && asked.complete && asked.found.is_empty(), "{:?}", asked.found);
    assert!(asked.states < plain.states, "{} {}", asked.states, plain.states);
    assert_eq!(asked.outcomes, plain.outcomes);
    assert!(takes_a_state_for_another(&ask(true, true)), "what it takes along is no secret");
}
