//! Like things are taken for each other, and only those.

mod common;

use common::{placed, takes_a_state_for_another};
use lazytlb_core::memory::{AtomicInt, AtomicWord, LocalWord, Ordering::*};
use lazytlb_machine::{
    Config, Exploration, Limits, Machine, MemoryModel, ObjectKind, Reduction, Search, SimLocal, SimWord, Thing,
};

const ALL: Limits = Limits { stop_at_first: false, executions: u64::MAX, time: core::time::Duration::MAX };

fn explore(machine: &Machine, reduction: Reduction) -> Exploration {
    let exploration = machine.explore(Search::Exhaustive(reduction), ALL);
    assert!(exploration.complete);
    exploration
}

/// Three CPUs, each with a task that adds to a word of its own and to a common one, as often as is said.
struct Adders {
    machine: Machine,
}

impl Adders {
    fn new(memory: MemoryModel, declared: bool, first: usize) -> Adders {
        let machine = Machine::new(Config { cpus: 3, memory, ticks: true, ..Config::default() });
        let first = |task| if task == 0 { first } else { 0 };
        let own: &[SimWord<usize>] =
            placed(machine.place_slice("own", ObjectKind::Other, 3, |task| AtomicWord::new(first(task))));
        let last: &SimLocal<*mut SimWord<usize>> =
            placed(machine.place("last", ObjectKind::Other, LocalWord::new(core::ptr::null_mut())));
        let common: &SimWord<usize> = placed(machine.place("common", ObjectKind::Other, AtomicWord::new(0)));
        for (task, word) in own.iter().enumerate() {
            let id = machine.add_task(&format!("adder{task}"), move || {
                word.fetch_add(1, Relaxed);
                let before = common.fetch_add(1, Relaxed);
                if before == 1 {
                    last.set((&raw const *word).cast_mut());
                }
                word.store(before, Relaxed);
            });
            machine.boot(id, true);
        }
        if declared {
            let thing = |task: usize| Thing::default().with_task(machine.task(task)).with(&raw const own[task]);
            machine.alike(&[(0..3).map(thing).collect()], &[]);
        }
        machine.outcome(move |_, values| {
            let mut sorted: Vec<u64> = own.iter().map(|word| word.peek() as u64).collect();
            sorted.sort_unstable();
            values.extend(sorted);
        });
        Adders { machine }
    }
}

/// The CPUs are not alike, but who is in which thing is, so each state stands for all ways to name the tasks. Here each CPU
/// keeps its task, so no two states differ in names alone.
#[test]
fn things_that_places_tell_apart_are_not_taken_for_each_other() {
    for memory in [MemoryModel::Sc, MemoryModel::Tso] {
        let plain = explore(&Adders::new(memory, false, 0).machine, Reduction::Full);
        let named = explore(&Adders::new(memory, true, 0).machine, Reduction::Named);
        let folded = explore(&Adders::new(memory, true, 0).machine, Reduction::Full);
        assert_eq!(plain.outcomes, folded.outcomes);
        assert_eq!(plain.outcomes, named.outcomes);
        assert_eq!((named.nameless, folded.states, folded.nameless), (named.states, named.states, named.states));
        assert_eq!(folded.stand_for, 6 * folded.states, "three tasks have six ways to be named");
    }
}

#[test]
#[should_panic(expected = "own[0] tells apart what is alike")]
fn things_must_start_alike() {
    explore(&Adders::new(MemoryModel::Sc, true, 7).machine, Reduction::Full);
}

#[test]
fn a_program_that_forgets_what_it_remembers_is_noticed() {
    let machine = Machine::new(Config { cpus: 2, ticks: true, ..Config::default() });
    let [words, own] = ["word", "own"].map(|name| -> &'static [SimWord<usize>] {
        placed(machine.place_slice(name, ObjectKind::Other, 2, |_| AtomicWord::new(0)))
    });
    for task in ["one", "other"] {
        let id = machine.add_task(task, move || {
            Machine::with(|machine| machine.checkpoint(0, true));
            let which = Machine::with(|machine| usize::from(machine.choose(2)));
            // It remembers which one it is, and says that it does not.
            Machine::with(|machine| machine.checkpoint(1, false));
            words[which].fetch_add(1, Relaxed);
        });
        machine.boot(id, true);
    }
    machine.alike(
        &[(0..2).map(|task| Thing::default().with_task(machine.task(task)).with(&raw const own[task])).collect()],
        &[],
    );
    let exploration = machine.explore(Search::Exhaustive(Reduction::Named), ALL);
    assert!(takes_a_state_for_another(&exploration), "{:?}", exploration.found);
}
