//! The bundled litmus tests: every strategy passes where it claims to, complete, under TSO and weak; and where a
//! test says what must be found elsewhere, that is found.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::{bundled, explore, kinds};
use lazytlb_machine::Kind;
use lazytlb_machine::MemoryModel::{self, Sc, Tso};
use lazytlb_sched_model::{Litmus, Rules, Setting, Strategy};

/// What is wrong with one run, if anything is.
fn wrong(litmus: &Litmus, setting: &Setting) -> Option<String> {
    let Setting { strategy, rules, memory, .. } = setting;
    let name = format!("{} {strategy} {rules} {memory}", litmus.program.name);
    let result = explore(litmus, setting);
    let kinds = kinds(&result);
    if strategy.claims(*rules) {
        let bad: Vec<&Kind> = kinds.iter().filter(|kind| !litmus.allowed.contains(kind)).collect();
        let first = result.found.first().map(|found| found.verdict.to_string());
        (!bad.is_empty() || !result.complete).then(|| format!("{name}: complete {}, {first:?}", result.complete))
    } else {
        let expected = litmus.expectation(*strategy, *rules)?;
        (!expected.is_met_by(&kinds)).then(|| format!("{name}: found {kinds:?}, expected {:?}", expected.kinds))
    }
}

#[test]
fn strategies_pass_where_they_claim_to_and_show_elsewhere_what_is_expected() {
    let tests: Vec<_> = bundled().into_iter().filter(|litmus| !litmus.is_mutation()).collect();
    assert!(tests.len() >= 20, "{} tests", tests.len());
    let mut runs = Vec::new();
    for litmus in &tests {
        for &rules in &litmus.machines {
            // What can happen under SC can happen under TSO as well; `lazytlb compare` runs both.
            let covered = |&&memory: &&MemoryModel| memory != Sc || !litmus.memories.contains(&Tso);
            for &memory in litmus.memories.iter().filter(covered) {
                let strategies = Strategy::all().filter(|&strategy| !litmus.is_slow_under(strategy, rules, memory));
                runs.extend(strategies.map(|strategy| (litmus, litmus.setting(strategy, rules, memory))));
            }
        }
    }
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut found = Vec::new();
        while let Some((litmus, setting)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.extend(wrong(litmus, setting));
        }
        found
    };
    let wrong: Vec<String> = thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What tests leave out is some of the largest for some strategies: nobody is left out altogether, on no machine.
#[test]
fn every_strategy_is_run_on_every_machine_under_every_memory_model() {
    let tests: Vec<_> = bundled().into_iter().filter(|litmus| !litmus.is_mutation()).collect();
    for strategy in Strategy::all() {
        for rules in Rules::ALL {
            for (memory, least) in [(Sc, 40), (Tso, 40), (MemoryModel::Weak, 20)] {
                let is_run = |litmus: &&Litmus| {
                    let runs_there = litmus.machines.contains(&rules) && litmus.memories.contains(&memory);
                    litmus.program.cpus() == 2 && runs_there && !litmus.is_slow_under(strategy, rules, memory)
                };
                let tests = tests.iter().filter(is_run).count();
                assert!(tests >= least, "{strategy} on {rules} under {memory}: {tests} tests of two CPUs");
            }
        }
        let is_run = |litmus: &Litmus| {
            litmus
                .machines
                .iter()
                .any(|&rules| litmus.memories.iter().any(|&memory| !litmus.is_slow_under(strategy, rules, memory)))
        };
        assert!(tests.iter().any(|litmus| litmus.program.cpus() == 3 && is_run(litmus)), "{strategy}: three CPUs");
    }
}
