//! The searches find what is there, find nothing where nothing is, and the reductions lose no outcome.

use lazytlb_machine::{Kind, Limits, Machine, MemoryModel, Reduction, Search};
use lazytlb_programs::{READER_FENCE, WRITER_FENCE, hazard, kinds, shootdown};

const ALL: Limits = Limits { executions: u64::MAX, time: core::time::Duration::MAX, stop_at_first: false };

fn full(machine: &Machine) -> lazytlb_machine::Exploration {
    machine.explore(Search::Exhaustive(Reduction::Full), ALL)
}

/// Both fences are needed, and only a model with store buffers can tell: under SC the bug must be missed.
#[test]
fn a_missing_fence_is_found_under_tso_and_missed_under_sc() {
    for readers in 1..=2 {
        for dropped in [READER_FENCE, WRITER_FENCE] {
            let tso = full(&hazard(readers, 1, MemoryModel::Tso, &[dropped]));
            assert_eq!((kinds(&tso), tso.complete), (vec![Kind::Dereferences], true), "{readers} {dropped:?}");
            let sc = full(&hazard(readers, 1, MemoryModel::Sc, &[dropped]));
            assert_eq!((kinds(&sc), sc.complete), (vec![], true), "{readers} {dropped:?}");
            assert_eq!((tso.never_met, sc.never_met), (vec![], vec![]));
        }
        for memory in MemoryModel::ALL {
            let right = full(&hazard(readers, 1, memory, &[]));
            assert_eq!((kinds(&right), right.complete), (vec![], true));
        }
    }
}

#[test]
fn a_shootdown_that_does_not_wait_is_found() {
    for memory in MemoryModel::ALL {
        for lazies in 1..=2 {
            let right = full(&shootdown(lazies, 2, memory, false));
            assert_eq!((kinds(&right), right.complete), (vec![], true));
            let wrong = full(&shootdown(lazies, 2, memory, true));
            assert_eq!((kinds(&wrong), wrong.complete), (vec![Kind::Dereferences], true));
        }
    }
}

/// What the reductions leave out must show nothing new: the outcomes of the plain enumeration of all interleavings are
/// the outcomes of the reduced searches, errors included.
#[test]
fn reductions_lose_no_outcome() {
    type Program = Box<dyn Fn() -> Machine>;
    let mut programs: Vec<(String, Program)> = Vec::new();
    for memory in MemoryModel::ALL {
        for dropped in [&[][..], &[READER_FENCE], &[WRITER_FENCE], &[READER_FENCE, WRITER_FENCE]] {
            programs.push((format!("hazard 1 {memory} {dropped:?}"), Box::new(move || hazard(1, 1, memory, dropped))));
            // Two rounds are more than a plain enumeration of all that can be read gets through soon.
            if memory != MemoryModel::Weak {
                programs.push((
                    format!("hazard 1x2 {memory} {dropped:?}"),
                    Box::new(move || hazard(1, 2, memory, dropped)),
                ));
            }
        }
        for wrong in [false, true] {
            programs.push((format!("shootdown 1 {memory} {wrong}"), Box::new(move || shootdown(1, 1, memory, wrong))));
            programs
                .push((format!("shootdown 1x2 {memory} {wrong}"), Box::new(move || shootdown(1, 2, memory, wrong))));
        }
    }
    programs.push(("hazard 2 sc".into(), Box::new(|| hazard(2, 1, MemoryModel::Sc, &[]))));
    for (name, program) in programs {
        let search = |reduction| program().explore(Search::Exhaustive(reduction), ALL);
        let plain = search(Reduction::None);
        assert!(plain.complete, "{name}");
        for reduction in [Reduction::States, Reduction::Full] {
            let reduced = search(reduction);
            assert!(reduced.complete, "{name}");
            assert_eq!(reduced.outcomes, plain.outcomes, "{name} {reduction:?}");
            assert!(reduced.executions <= plain.executions, "{name}: {} {}", reduced.executions, plain.executions);
        }
    }
}

#[test]
fn two_searches_do_exactly_the_same() {
    let counts = |machine: &Machine| {
        let found = full(machine);
        (found.executions, found.states, found.steps, found.restarts, found.outcomes)
    };
    let kept = hazard(2, 2, MemoryModel::Tso, &[]);
    let first = counts(&kept);
    assert_eq!(counts(&kept), first, "the same machine again");
    assert_eq!(counts(&hazard(2, 2, MemoryModel::Tso, &[])), first, "another machine elsewhere in memory");
}

/// A mutation that never takes effect tests nothing, and says so.
#[test]
fn a_mutation_that_is_never_met_is_reported() {
    let label = lazytlb_core::memory::Label::new("no.such.label");
    assert_eq!(full(&hazard(1, 1, MemoryModel::Sc, &[label])).never_met, ["no.such.label"]);
}

#[test]
fn random_and_pct_searches_find_the_missing_fence() {
    for search in [
        Search::Random { seed: 1, executions: 20_000 },
        Search::Pct { seed: 1, executions: 20_000, depth: 3 },
        Search::Bounded(2),
    ] {
        let found = hazard(2, 1, MemoryModel::Tso, &[WRITER_FENCE]).explore(search, Limits::default());
        assert_eq!(kinds(&found), [Kind::Dereferences], "{search:?}");
        assert!(!found.complete);
    }
}

/// Every random execution ends in an outcome that the exhaustive search knows.
#[test]
fn random_executions_show_nothing_new() {
    for (name, program) in [
        ("hazard", Box::new(|| hazard(2, 2, MemoryModel::Tso, &[])) as Box<dyn Fn() -> Machine>),
        ("hazard without fences", Box::new(|| hazard(2, 1, MemoryModel::Tso, &[READER_FENCE, WRITER_FENCE]))),
        ("shootdown", Box::new(|| shootdown(2, 2, MemoryModel::Tso, false))),
    ] {
        let known = full(&program()).outcomes;
        let random = program().explore(Search::Random { seed: 7, executions: 30_000 }, ALL);
        assert!(random.outcomes.is_subset(&known), "{name}");
    }
}
